"""Tests mirror src: each module has a test file of its name, or stands here with the file that tests it."""

from __future__ import annotations

from places import ROOT

SOURCE, TESTS = ROOT / "src" / "tuneloop", ROOT / "tests"

# Modules that are tested through what uses them, by the test file that does it.
TESTED_IN = {
    "test_api.py": "settings",
    "agents/test_server.py": "cli.mcp",
    "advice/test_recommendation.py": "advice.config advice.measured advice.rules records.advice pipeline.advise",
    "combine/distill/test_command.py": "cli.distill records.distillation",
    "combine/route/test_command.py": "cli.route records.router",
    "combine/merge/test_merge.py": "combine.merge.adapters",
    "cli/test_advise.py": "report.advise_html",
    "report/test_advise_charts.py": "report.quality",
    "report/test_answer.py": "evaluation.recommended",
    "pipeline/test_encoder.py": "inference.encoder models.encoder records.encoder release.onnx",
    "core/test_terminal.py": "cli.console core.ui",
    "web/test_access.py": "core.access",
    "serving/batch/test_journal.py": "core.journal",
    "cli/test_compare.py": "evaluation.comparison",
    "cli/test_errors.py": "cli.doctor",
    "cli/test_parameters.py": "core.flag",
    "cli/test_one_cost.py": "planning.recommend",
    "data/formats/test_formats.py": "data.formats.draft data.formats.guess",
    "data/pii/test_pii.py": "data.pii.credentials data.pii.redact",
    "data/test_prepare.py": "data.config",
    "evaluation/metrics/test_metrics.py": "evaluation.metrics.declared records.metric",
    "evaluation/test_deciding.py": "evaluation.metrics.kinds",
    "evaluation/review/test_server.py": "cli.review",
    "evaluation/test_evaluate.py": "evaluation.config evaluation.scoring",
    "evaluation/foreign/test_read.py": "evaluation.foreign.deepeval evaluation.foreign.inspect_ai"
    " evaluation.foreign.lm_eval_samples evaluation.foreign.mlflow_table evaluation.foreign.openai_evals"
    " evaluation.foreign.promptfoo evaluation.foreign.table",
    "evaluation/test_forgetting.py": "records.side_effects",
    "evaluation/gate/test_decide.py": "cli.gate",
    "evaluation/test_sandbox.py": "evaluation.sandbox_child",
    "imports/test_importing.py": "cli.import imports.formats imports.helicone imports.jsonl imports.litellm"
    " imports.openai imports.parts imports.tensorzero",
    "imports/test_langfuse.py": "imports.pages",
    "inference/test_targets.py": "inference.local.target",
    "inference/prompt/test_turns.py": "inference.prompt.serving inference.prompt.target",
    "pipeline/test_prompt_stage.py": "cli.prompt records.prompt",
    "inference/local/test_serving.py": "inference.protocol",
    "inference/local/test_engine.py": "inference.request",
    "inference/local/test_scoring.py": "inference.labels",
    "inference/openai/test_target.py": "inference.endpoint inference.openai.api inference.requesting",
    "inference/llamacpp/test_llamacpp.py": "inference.llamacpp.child inference.llamacpp.process",
    "inference/llamacpp/test_serving.py": "inference.llamacpp.server",
    "pipeline/test_gguf.py": "release.measure",
    "improve/experiment/test_plan.py": "improve.experiment.record",
    "improve/experiment/test_statistics.py": "improve.experiment.decision improve.experiment.tally",
    "models/methods/test_methods.py": "models.methods.full models.methods.lora models.methods.method models.methods.prefix"
    " models.methods.shipped",
    "planning/test_cost.py": "report.plan_terminal",
    "planning/test_memory.py": "planning.config planning.job",
    "planning/catalogue/test_shape.py": "models.nn.shape",
    "records/test_record.py": "records.artifact records.feedback records.plan records.request records.run",
    "cli/test_schema.py": "records.rows",
    "migrate/test_command.py": "cli.migrate migrate.record",
    "migrate/test_copy.py": "migrate.survey",
    "migrate/test_service.py": "core.http.service",
    "release/test_artifact.py": "release.card release.formats release.export",
    "registry/test_versions.py": "cli.models registry.record",
    "report/charts/test_systems.py": "report.charts.svg",
    "report/data/test_html.py": "report.data.facts",
    "report/test_facts.py": "core.written evaluation.metrics.written",
    "report/test_eval_html.py": "report.comparison report.eval_parts",
    "serving/http/test_app.py": "serving.http.api_request serving.config serving.gateway",
    "improve/report/test_command.py": "improve.report.record improve.report.html",
    "serving/batch/test_command.py": "cli.batch",
    "serving/test_server.py": "cli.serve serving.models",
    "web/test_app.py": "web.sources",
    "web/test_runs.py": "web.growing web.pages.compare web.pages.report web.pages.run web.pages.runs",
    "web/test_data_pages.py": "report.data.rows web.pages.data web.pages.dataset",
    "web/test_speaker.py": "web.pages.playground",
    "web/test_serve.py": "cli.ui web.export",
    "serving/store/test_store.py": "core.ids",
    "deploy/hosts/test_hosts.py": "deploy.project_text deploy.hosts.baseten deploy.hosts.compose"
    " deploy.hosts.huggingface deploy.hosts.kubernetes"
    " deploy.hosts.modal deploy.hosts.ollama deploy.hosts.replicate"
    " deploy.hosts.runpod deploy.hosts.sagemaker deploy.hosts.together",
    "deploy/clusters/test_clusters.py": "deploy.clusters.kubernetes deploy.clusters.modal deploy.clusters.skypilot"
    " deploy.clusters.slurm deploy.clusters.torchrun",
    "deploy/test_skypilot_sdk.py": "deploy.launch",
    "deploy/test_on_ray.py": "core.ray.actors core.ray.driver core.ray.training core.ray.tune",
    
    "deploy/test_hosted.py": "deploy.services deploy.services.openai deploy.services.together deploy.services.fireworks",
    "deploy/test_command.py": "cli.deploy deploy.record",
    "test_architecture.py": "core.lazy",
    "test_project.py": "core.version",
    "web/pages/test_experiments.py": "web.pages.experiment",
    "web/pages/test_traffic.py": "web.pages.request",
    "training/test_distributed.py": "core.sharded",
    "track/test_mlflow.py": "track.record",
    "training/test_distil.py": "training.teachers",
    "training/test_loop.py": "training.config training.run training.step",
    "combine/merge/test_command.py": "cli.merge combine.options records.merge",
    "release/test_repeat.py": "release.reproduction",
    "improve/experiment/test_command.py": "cli.ab",
    "improve/collect/test_command.py": "cli.collect",
    "improve/monitor/test_command.py": "cli.monitor improve.monitor.record",
    "improve/controller/test_command.py": "cli.improve improve.controller.controller",
    "pipeline/answers/test_chat.py": "cli.chat",
    "pipeline/demo/test_demo.py": "cli.demo pipeline.demo.files",
    "pipeline/test_evaluate.py": "cli.endpoint pipeline.compare pipeline.answers.scoring",
    "pipeline/answers/test_predictions.py": "cli.predict",
    "pipeline/test_sweep.py": "records.sweep",
    "pipeline/test_timed_baselines.py": "pipeline.baselines",
    "pipeline/test_run.py": "core.machine cli.run cli.train pipeline.prepare"
    " pipeline.context pipeline.train",
}  # fmt: skip


def namesakes() -> dict[str, str]:
    """Each module that defines something, with the test file of its name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        folder, name = path.relative_to(SOURCE).parent, path.stem
        defines = any(line.startswith(("def ", "class ")) for line in path.read_text(encoding="utf-8").splitlines())
        if name == "__main__" or (name == "__init__" and not (defines and folder.name)):
            continue
        module = ".".join((folder / name).parts).removesuffix(".__init__")
        found[module] = str(folder / f"test_{folder.name if name == '__init__' else name}.py")
    return found


def test_each_module_has_a_test_file_of_its_name_or_stands_in_the_table() -> None:
    listed = {module for modules in TESTED_IN.values() for module in modules.split()}
    alone = [f"{m}: write tests/{t}, or add it to TESTED_IN" for m, t in namesakes().items()
             if not (TESTS / t).exists() and m not in listed]  # fmt: skip
    assert not alone, "\n".join(alone)


def test_the_table_names_files_and_modules_that_are_there_and_need_it() -> None:
    of = namesakes()
    wrong = [f"there is no tests/{file}" for file in TESTED_IN if not (TESTS / file).exists()]
    for module in (module for modules in TESTED_IN.values() for module in modules.split()):
        if module not in of:
            wrong.append(f"there is no module {module} that defines something")
        elif (TESTS / of[module]).exists():
            wrong.append(f"{module} has a test file of its name")
    assert not wrong, "\n".join(wrong)


def test_test_files_without_a_module_of_their_name_say_what_they_test() -> None:
    of = set(namesakes().values())
    silent = [
        str(path.relative_to(TESTS)) for path in sorted(TESTS.rglob("test_*.py"))
        if str(path.relative_to(TESTS)) not in of and not path.read_text(encoding="utf-8").startswith('"""')
    ]  # fmt: skip
    assert not silent, "\n".join(silent)
