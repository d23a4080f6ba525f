"""What is in files and crosses stages, each file with its version. A module is a file's record, public as it is.

advice: `advise.json`.
artifact: `artifact.json`.
completion: an answer of a model, from the engine to the files.
dataset: `dataset.json`.
distillation: `distillation.json`.
encoder: `encoder.json`.
evaluation: `eval.json`, `samples.jsonl`, `baselines.json`, `gate.json`.
feedback: what people said of answers.
merge: `merge.json`.
metric: how a metric's values are read, written and compared.
plan: `plan.json`.
prompt: `prompt.yaml`, `search.json`.
record: what all records share: how they are written and read.
request: a request that was served, as it is stored.
review: `review.json`, `items.jsonl`, `votes.jsonl`, `judge.jsonl`.
router: `router.json`.
rows: the rows of a data set.
run: `run.json`, `environment.json`, `metrics.jsonl`.
server: a server's state and decisions, and what was collected from its store.
side_effects: what tuning has changed besides its task: parts of `eval.json`.
sweep: `sweep.json`.
"""
