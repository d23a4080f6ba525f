"""Tests mirror src: each module has a test file of its name, or stands here with the file that tests it."""

from __future__ import annotations

from places import ROOT

SOURCE, TESTS = ROOT / "src" / "tuneloop", ROOT / "tests"

# Modules that are tested through what uses them, by the test file that does it.
TESTED_IN = {
    "advise/test_advise.py": "advise.config advise.measured advise.rules records.advice workflows.advise",
    "combine/test_route_fit.py": "combine.router",
    "workflows/test_distil.py": "cli.distill records.distillation workflows.distil_prompts workflows.distil_teacher",
    "workflows/test_route.py": "cli.route records.router",
    "combine/test_merge.py": "combine.adapters",
    "inference/test_grammar.py": "inference.grammar_child",
    "cli/test_advise.py": "cli.prices report.advise_html",
    "cli/test_compare.py": "report.compare_terminal",
    "cli/test_console.py": "core.progress",
    "serve/test_journal.py": "core.journal",
    "cli/test_errors.py": "cli.doctor",
    "cli/test_parameters.py": "core.flag evaluate.options",
    "cli/test_plan_anything.py": "plan.remedies",
    "cli/test_one_cost.py": "plan.recommend",
    "data/checks/test_checks.py": "data.checks.overview",
    "data/dedup/test_duplicates.py": "data.dedup.minhash",
    "data/formats/test_detect.py": "data.formats.draft data.formats.fields data.formats.sample",
    "data/formats/test_exchanges.py": "data.formats.logs",
    "data/formats/test_ratings.py": "data.formats.thumbs",
    "data/pii/test_pii.py": "data.pii.credentials data.pii.documents data.pii.names",
    "data/test_extend_data.py": "data.checks.registry data.formats.registry",
    "data/test_prepare.py": "data.config data.dedup_and_split data.prepare_context data.reasons data.write_dataset",
    "data/test_repair.py": "data.spelling",
    "evaluate/metrics/test_metrics.py": "records.metric",
    "evaluate/review/test_server.py": "cli.review",
    "evaluate/test_classical.py": "evaluate.metrics.embedding",
    "evaluate/test_evaluate.py": "evaluate.config evaluate.scoring",
    "evaluate/test_few_shot.py": "evaluate.prompt",
    "evaluate/test_first_suite.py": "workflows.suites",
    "evaluate/test_forgetting.py": "records.side_effects",
    "evaluate/test_gate.py": "cli.gate evaluate.suite",
    "evaluate/test_judge.py": "workflows.judge",
    "evaluate/test_sandbox.py": "evaluate.sandbox_child",
    "inference/test_targets.py": "inference.local.target inference.predictions",
    "inference/local/test_serving.py": "inference.answer inference.prompt",
    "inference/test_engine.py": "inference.request",
    "inference/test_wire.py": "inference.timeouts",
    "inference/llamacpp/test_llamacpp.py": "inference.llamacpp.child",
    "inference/llamacpp/test_engine.py": "inference.llamacpp.server",
    "workflows/test_gguf.py": "workflows.measure_artifact",
    "improve/test_experiment_plan.py": "improve.config records.experiment",
    "models/methods/test_methods.py": "models.methods.full models.methods.lora models.methods.method models.methods.prefix"
    " models.methods.qlora",
    "models/test_adapters.py": "models.alongside",
    "plan/test_cost.py": "advise.economy report.plan_terminal",
    "plan/test_memory.py": "plan.config plan.job",
    "plan/test_options.py": "plan.usual",
    "plan/test_serve.py": "records.serving report.serve_terminal",
    "plan/test_shape.py": "models.shape",
    "records/test_record.py": "records.artifact records.feedback records.plan records.request records.run",
    "records/test_schemas.py": "cli.schema records.rows workflows.schemas",
    "release/test_export.py": "release.card release.forms release.options workflows.export",
    "release/test_gguf.py": "release.tuned_weights",
    "release/test_registry.py": "cli.models cli.promote cli.register cli.rollback records.registry",
    "release/test_verify.py": "cli.verify",
    "report/test_data_html.py": "report.data_charts report.data_facts report.differences",
    "report/test_eval_html.py": "report.eval_charts report.eval_parts report.table",
    "report/test_head.py": "report.compared report.settings",
    "serve/test_keys.py": "records.api_key",
    "serve/test_app.py": "serve.api_request serve.config serve.errors serve.gateway serve.openapi serve.page"
    " serve.replies",
    "serve/test_admission.py": "serve.service_time",
    "workflows/test_improve_report.py": "records.improvement report.improve_charts report.improve_html",
    "workflows/test_batch.py": "cli.batch",
    "workflows/test_costs.py": "cli.costs",
    "workflows/test_top.py": "cli.top",
    "workflows/test_requests.py": "cli.requests",
    "workflows/test_serve.py": "cli.serve workflows.serve_models",
    "serve/test_store.py": "core.ids records.decision",
    "scale/hosts/test_hosts.py": "scale.discovery scale.inference_pool scale.text scale.hosts.baseten scale.hosts.compose scale.hosts.docker_model_runner"
    " scale.hosts.dstack scale.hosts.fireworks scale.hosts.huggingface scale.hosts.kserve scale.hosts.kubernetes"
    " scale.hosts.modal scale.hosts.ollama scale.hosts.production_stack scale.hosts.ray_serve scale.hosts.replicate"
    " scale.hosts.runpod scale.hosts.sagemaker scale.hosts.skypilot scale.hosts.together",
    "scale/clusters/test_clusters.py": "scale.clusters.kubernetes scale.clusters.modal scale.clusters.skypilot"
    " scale.clusters.slurm scale.clusters.torchrun",
    "scale/test_bill.py": "records.bill workflows.bill",
    "scale/test_skypilot_sdk.py": "workflows.put_up",
    "workflows/test_on_ray.py": "scale.actors scale.ray_driver scale.ray_training scale.ray_tune",
    "workflows/test_sweep.py": "cli.sweep records.sweep",
    "workflows/test_deploy.py": "cli.deploy records.hosting",
    "test_architecture.py": "core.late",
    "test_memory_on_a_gpu.py": "models.random_model",
    "track/test_mlflow.py": "records.tracking",
    "train/test_distributed.py": "models.sharded",
    "workflows/test_distributed.py": "inference.crew",
    "release/test_push.py": "cli.push",
    "train/test_distil.py": "train.distil_settings train.teachers",
    "train/test_loop.py": "train.config train.run train.step",
    "workflows/test_merge.py": "cli.merge combine.options records.merge workflows.pooled",
    "workflows/test_reproduce.py": "cli.reproduce records.reproduction train.schedule",
    "train/test_preferences.py": "train.loss_table",
    "workflows/test_ab.py": "cli.ab",
    "workflows/test_collect.py": "cli.collect records.collected",
    "workflows/test_monitor.py": "cli.monitor records.monitoring",
    "workflows/test_improve.py": "cli.improve improve.controller",
    "workflows/test_feedback.py": "cli.feedback",
    "workflows/test_chat.py": "cli.chat",
    "workflows/test_evaluations.py": "cli.endpoint cli.rows workflows.compare workflows.evaluate workflows.scoring",
    "workflows/test_library.py": "core.callable_package",
    "workflows/test_predict.py": "cli.predict workflows.predict_files workflows.targets workflows.task",
    "workflows/test_rounds.py": "workflows.baselines",
    "workflows/test_run.py": "core.machine cli.report cli.run cli.train workflows.prepare workflows.recipe"
    " workflows.report workflows.run_context workflows.train",
}  # fmt: skip


def namesakes() -> dict[str, str]:
    """Each module that defines something, with the test file of its name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        place, name = path.relative_to(SOURCE).parent, path.stem
        defines = any(line.startswith(("def ", "class ")) for line in path.read_text(encoding="utf-8").splitlines())
        if name == "__main__" or (name == "__init__" and not (defines and place.name)):
            continue
        module = ".".join((place / name).parts).removesuffix(".__init__")
        found[module] = str(place / f"test_{place.name if name == '__init__' else name}.py")
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
