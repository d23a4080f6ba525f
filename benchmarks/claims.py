"""Write benchmarks/records/claims.md: common rules of thumb, each compared with the planner's own results.

`python benchmarks/claims.py`. The verdicts are computed, so they change when the planner or the bundled prices do; a test
checks that the page is what this script writes.
"""

from __future__ import annotations

import os
import tempfile
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.advice.economics import (
    Alternative,
    ModelFootprint,
    ServingGpu,
    TokenRate,
    break_even,
    serving_tokens_per_second,
    usd_per_million_tokens,
)
from tuneloop.planning.catalogue.gpus import find_gpu
from tuneloop.planning.catalogue.prices import PriceTable, load_prices
from tuneloop.planning.catalogue.shape import find_model
from tuneloop.planning.cost import Efforts, cost_of
from tuneloop.planning.job import TrainingSetup, make_job
from tuneloop.planning.memory import memory_of
from tuneloop.planning.speed import SPREAD, overhead_hours, speed_of

PAGE = Path(__file__).parent / "records" / "claims.md"
GIB, GB = 1024**3, 10**9
LEAN: dict[str, Any] = {"grad_ckpt": True, "loss_kernel": "fused", "attention": "flash"}
TOKENS_A_ROW, EPOCHS = 500, 3


@dataclass(frozen=True)
class Claim:
    """A rule of thumb, whether it holds, and what holds instead."""

    text: str
    verdict: str
    why: list[str]


def job(model: str, method: str, gpu: str, gpus: int = 1, **settings: Any) -> TrainingSetup:
    """A job by short names; rows of 2,048 tokens one at a time, checkpointed, fused loss, unless set otherwise."""
    sharding = "none" if gpus == 1 else "fsdp"
    shape = find_model(model)[1]
    usual = {**LEAN, "seq_len": 2048, "micro_batch": 1, "sharding": sharding}
    return make_job(
        **{"model": model, "shape": shape, "gpu": find_gpu(gpu), "gpus": gpus, "method": method, **usual, **settings}
    )


def gib(of: TrainingSetup) -> float:
    """GiB that a GPU must have."""
    return memory_of(of).required


def hours(of: TrainingSetup, rows: int) -> float:
    """Hours of one run over rows of 500 tokens, three times."""
    return rows * TOKENS_A_ROW * EPOCHS / speed_of(of).tokens_per_second / 3600 + sum(overhead_hours(of).values())


def line(text: str, of: TrainingSetup) -> str:
    """A setting and what it needs."""
    memory = memory_of(of)
    return f"{text}: {memory.required:.1f} GiB ({memory.required * GIB / GB:.0f} GB), {'fits' if memory.fits else 'does not fit'} {of.gpu.name}'s {of.gpu.gib:.1f} GiB"


def verdict(holds: list[bool]) -> str:
    """`holds`, `holds only under some settings` or `does not hold`."""
    return "holds" if all(holds) else "holds only under some settings" if any(holds) else "does not hold"


# --- memory ------------------------------------------------------------------------------------


def full_8b() -> Claim:
    ways = {
        "AdamW with fp32 states": job("llama-3.1-8b", "full", "a100-40gb"),
        "AdamW with bf16 states": job("llama-3.1-8b", "full", "a100-40gb", optimizer="adamw-bf16"),
        "8-bit AdamW": job("llama-3.1-8b", "full", "a100-40gb", optimizer="adamw-8bit"),
        "8-bit AdamW, weights updated in the backward pass": job(
            "llama-3.1-8b", "full", "a100-40gb", optimizer="adamw-8bit", optimizer_in_backward=True
        ),
        "paged 8-bit AdamW, updated in the backward pass": job(
            "llama-3.1-8b", "full", "a100-40gb", optimizer="paged-adamw-8bit", optimizer_in_backward=True
        ),
    }
    return Claim(
        "8B full fine-tuning in 40 GB",
        verdict([memory_of(way).fits for way in ways.values()]),
        [line(name, way) for name, way in ways.items()]
        + ["Plain mixed precision needs 16 bytes a parameter before activations: 128 GB for 8 billion."],
    )


def lora_8b() -> Claim:
    ways = {
        "rank 16, all linear layers, checkpointed, fused loss, RTX 4090": job("llama-3.1-8b", "lora", "rtx4090"),
        "the same on an L4": job("llama-3.1-8b", "lora", "l4"),
        "without checkpointing, eager loss": job(
            "llama-3.1-8b", "lora", "rtx4090", grad_ckpt=False, loss_kernel="eager"
        ),
    }
    return Claim(
        "8B LoRA in 24 GB", verdict([memory_of(w).fits for w in ways.values()]), [line(*way) for way in ways.items()]
    )


def qlora_8b() -> Claim:
    ways = {
        "NF4 with double quantisation, checkpointed, fused loss": job("llama-3.1-8b", "qlora", "rtx4090"),
        "the same, rows of 512 tokens": job("llama-3.1-8b", "qlora", "rtx4090", seq_len=512),
        "eager loss, and head and embeddings upcast": job(
            "llama-3.1-8b", "qlora", "rtx4090", loss_kernel="eager", head_fp32=True
        ),
        "eager loss, upcast, 4 rows of 2,048": job(
            "llama-3.1-8b", "qlora", "rtx4090", loss_kernel="eager", head_fp32=True, micro_batch=4
        ),
    }
    room = 12 * GB / GIB
    reason = [f"{name}: {gib(way):.1f} GiB of {room:.1f}" for name, way in ways.items()]
    return Claim("8B QLoRA in 12 GB", verdict([gib(way) <= room for way in ways.values()]), reason)


def full_70b() -> Claim:
    ways = {
        "AdamW with fp32 states": job("llama-3.3-70b", "full", "a100-80gb", 8),
        "AdamW with bf16 states": job("llama-3.3-70b", "full", "a100-80gb", 8, optimizer="adamw-bf16"),
        "8-bit AdamW": job("llama-3.3-70b", "full", "a100-80gb", 8, optimizer="adamw-8bit"),
        "everything offloaded": job("llama-3.3-70b", "full", "a100-80gb", 8, offload=True),
    }
    whole = {name: 8 * gib(way) * GIB / GB for name, way in ways.items()}
    reason = [f"{name}: {gib(way):.0f} GiB on each of 8, {whole[name]:.0f} GB in all, "
           f"{'fits' if memory_of(way).fits else 'does not fit'}" for name, way in ways.items()]  # fmt: skip
    parameters = find_model("llama-3.3-70b")[1].parameters
    reason.append(
        f"What is offloaded must fit into the host's memory: weights, gradients and fp32 states are {parameters * 16 / GB:,.0f} GB."
    )
    reason.append(
        "The bf16 weights alone are 141 GB, their gradients as much again; 160 GB holds these weights and little else."
    )
    return Claim(
        "70B full fine-tuning in 160 GB on 8 x A100 80 GB", verdict([w <= 160 for w in whole.values()]), reason
    )


def lora_70b() -> Claim:
    item = job("llama-3.3-70b", "lora", "a100-80gb")
    two, four = (job("llama-3.3-70b", "lora", "a100-80gb", n) for n in (2, 4))
    return Claim(
        "70B LoRA on one 80 GB GPU",
        verdict([memory_of(item).fits]),
        [line("bf16 weights", item), line("divided over 2", two), line("divided over 4", four),
         line("QLoRA instead, on one", job("llama-3.3-70b", "qlora", "a100-80gb"))],
    )  # fmt: skip


def qlora_70b() -> Claim:
    ways = {
        f"rows of {n:,} tokens{text}": job("llama-3.3-70b", "qlora", "a6000", seq_len=n, **more)
        for n in (512, 2048)
        for text, more in (("", {}), (", eager loss, upcast", {"loss_kernel": "eager", "head_fp32": True}))
    }
    needs = {name: gib(way) * GIB / GB for name, way in ways.items()}
    reason = [f"{name}: {gb:.1f} GB" for name, gb in needs.items()]
    reason.append(
        "The 4-bit weights are 35 GB; embeddings and head stay in 16 bits, 4 GB more, before the first activation."
    )
    return Claim("70B QLoRA in 35 to 40 GB", verdict([gb <= 40 for gb in needs.values()]), reason)


# --- time --------------------------------------------------------------------------------------


def time_8b() -> Claim:
    a100 = job("llama-3.1-8b", "lora", "a100-80gb", micro_batch=4)
    low, high = hours(a100, 1000), hours(a100, 5000)
    reach = 2 * 3600 * speed_of(a100).tokens_per_second / EPOCHS / 5000
    return Claim(
        "LoRA on 8B takes 2 to 4 hours for 1,000 to 5,000 examples on an A100",
        verdict([2 <= low <= 4, 2 <= high <= 4]),
        [f"rows of {TOKENS_A_ROW} tokens, {EPOCHS} epochs: {low * 60:.0f} minutes for 1,000, {high * 60:.0f} for 5,000 "
         f"(80 % of published runs within a factor of {SPREAD})",
         f"2 hours for 5,000 examples would be rows of about {reach:,.0f} tokens"],
    )  # fmt: skip


def time_70b() -> Claim:
    item, eight = job("llama-3.3-70b", "qlora", "a100-80gb"), job("llama-3.3-70b", "lora", "a100-80gb", 8)
    spans = [(hours(way, 1000), hours(way, 5000)) for way in (item, eight)]
    return Claim(
        "70B takes 6 to 12 hours for 1,000 to 5,000 examples",
        verdict([6 <= h <= 12 for span in spans for h in span]),
        [f"QLoRA on one A100 80 GB: {spans[0][0]:.1f} to {spans[0][1]:.1f} hours",
         f"LoRA on 8 x A100 80 GB: {spans[1][0]:.1f} to {spans[1][1]:.1f} hours",
         "It depends on tokens, epochs and GPUs, and no number without them means much."],
    )  # fmt: skip


def qlora_speed() -> Claim:
    pairs = {
        "8B on an A100, same settings": (job("llama-3.1-8b", "lora", "a100-80gb"), job("llama-3.1-8b", "qlora", "a100-80gb")),
        "8B on an RTX 4090, QLoRA in the freed memory without checkpointing": (
            job("llama-3.1-8b", "lora", "rtx4090"), job("llama-3.1-8b", "qlora", "rtx4090", grad_ckpt=False)
        ),
    }  # fmt: skip
    ratios = {
        name: speed_of(q).tokens_per_second / speed_of(lora).tokens_per_second for name, (lora, q) in pairs.items()
    }
    fits = {name: memory_of(q).fits for name, (_, q) in pairs.items()}
    return Claim(
        "QLoRA finishes faster than LoRA",
        verdict([ratio > 1 and fits[name] for name, ratio in ratios.items()]),
        [f"{name}: {ratio:.2f} times LoRA's speed{'' if fits[name] else ', but does not fit'}" for name, ratio in ratios.items()]
        + ["Every 4-bit weight is unpacked on each use: at equal settings it is slower. It wins only where the memory that it "
           "frees lets something else be switched off."],
    )  # fmt: skip


def prefix_speed() -> Claim:
    lora, full = (job("llama-3.1-8b", m, "h100-sxm", optimizer="adamw-bf16") for m in ("lora", "full"))
    prefix = job("llama-3.1-8b", "prefix", "h100-sxm")
    to_lora, to_full = (
        speed_of(prefix).tokens_per_second / speed_of(other).tokens_per_second for other in (lora, full)
    )
    return Claim(
        "Prefix tuning trains 100 times faster and costs a hundredth",
        verdict([to_lora >= 100, to_full >= 100]),
        [f"{to_lora:.2f} times LoRA's speed, {to_full:.2f} times that of full fine-tuning, on one H100",
         f"What is a hundredth or less is the number of trained parameters: {prefix.trainable:,} of {full.trainable:,}",
         "Each token still passes forward and backward through the whole model."],
    )  # fmt: skip


# --- money -------------------------------------------------------------------------------------


def bills(prices: PriceTable) -> Claim:
    lines, holds = [], []
    cases = (("a100-80gb", 1, 1.19, 3, 3.57), ("h100-sxm", 1, 2.69, 8, 21.52), ("a100-80gb", 8, 21.60 / 8, 12, 259.20))
    for gpu, gpus, usd, time, total in cases:
        bare = usd * gpus * time
        price = next(p for p in prices.levels[-1] if p.gpu == gpu and abs(p.usd_per_hour - usd) < 1e-6)
        cost = cost_of(time, time / SPREAD, time * SPREAD, gpus, price, efforts=Efforts())
        holds.append(abs(bare - total) < 0.005)
        lines.append(
            f"${usd * gpus:.2f} x {time} h = ${bare:.2f} ({price.provider}, {price.date}); with three runs until one is kept, setup, "
            f"evaluation, storage and failures ${cost.p50:,.2f} (P50) to ${cost.p90:,.2f} (P90), people's time not counted"
        )
    return Claim(
        "$1.19 x 3 h = $3.57; $2.69 x 8 h = $21.52; $21.60 x 12 h = $259.20",
        f"{verdict(holds)} as products; the hours are the question",
        lines,
    )


def saved_prompt() -> Claim:
    rate = TokenRate(2.0, 0.0)  # 500 tokens at this price are $0.001
    today = Alternative("today", 500, 0, rate)
    spans = []
    for invested in (100, 600):
        found = break_even(today, Alternative("tuned", 450, 0, rate, upfront_usd=invested), 10_000)
        spans.append(found.queries or 0.0)
    whole = [
        break_even(today, Alternative("tuned", 0, 0, rate, upfront_usd=usd), 10_000).queries or 0.0
        for usd in (100, 600)
    ]
    return Claim(
        "500 prompt tokens at $0.001 a query: a 10 % reduction pays back $100 to $600 in 100,000 to 1,000,000 queries",
        verdict([round(n) < 1_000_000 for n in spans]),
        [f"10 % of $0.001 is $0.0001 a query: $100 is back after {spans[0]:,.0f} queries, the end of the claim's range, $600 after {spans[1]:,.0f}",
         f"The claim's numbers follow when the whole $0.001 is saved: {whole[0]:,.0f} and {whole[1]:,.0f} queries"],
    )  # fmt: skip


def million_requests() -> Claim:
    day = TokenRate(0.10, 0.10).usd_per_query(10, 0) * 1_000_000
    before = Alternative("today", 10, 0, TokenRate(0.10, 0.10))
    half = break_even(before, Alternative("tuned", 5, 0, TokenRate(0.10, 0.10), upfront_usd=3.57), 1_000_000)
    return Claim(
        "1M requests a day of 10 tokens at $0.10 per 1M tokens cost $30 a month and pay back $3.57 in a day",
        verdict([abs(day * 30 - 30) < 0.01, 3.57 / day <= 1]),
        [f"${day:.2f} a day, ${day * 30:.0f} in 30 days: that part holds",
         f"At most ${day:.2f} a day can be saved, were every token free: $3.57 is back after {3.57 / day:.1f} days at best, after "
         f"{half.days:.1f} days when half of the tokens go"],
    )  # fmt: skip


def self_hosting(prices: PriceTable) -> Claim:
    lines, usd = [], []
    for model, gpu, gpus in (
        ("llama-3.1-8b", "l40s", 1),
        ("llama-3.1-8b", "h100-sxm", 1),
        ("llama-3.3-70b", "h100-sxm", 4),
    ):
        shape, card = find_model(model)[1], find_gpu(gpu)
        served = ModelFootprint(shape.parameters, 2, 2 * shape.layers * shape.keys * 2)
        machine = ServingGpu(card.gib * GIB * gpus, card.gb_s * 1e9 * gpus, card.tflops * 1e12 * gpus)
        speed = serving_tokens_per_second(served, machine, 500, 100)
        price = prices.gpu(gpu, "on-demand", gpus)
        assert price is not None
        found = [usd_per_million_tokens(price.machines_usd(gpus), speed, share) for share in (1.0, 0.3, 0.05)]
        usd += found
        lines.append(
            f"{model} on {gpus} x {card.name} (${price.usd_per_hour:g} an hour each, {price.provider}): about {speed:,.0f} tokens/s; "
            f"${found[0]:.3f} always busy, ${found[1]:.3f} at 30 %, ${found[2]:.2f} at 5 %"
        )
    lines.append(
        "Prompts of 500 and answers of 100 tokens in bf16, by the roofline: an estimate; a machine that waits for traffic costs the same."
    )
    return Claim("Self-hosting costs $0.01 to $0.10 per 1M tokens", verdict([0.01 <= u <= 0.10 for u in usd]), lines)


def under_600(prices: PriceTable) -> Claim:
    way = job("llama-3.3-70b", "qlora", "a100-80gb")
    time, price = hours(way, 5000), prices.gpu("a100-80gb")
    assert price is not None
    machine = cost_of(time, time / SPREAD, time * SPREAD, 1, price)
    people = cost_of(time, time / SPREAD, time * SPREAD, 1, price, efforts=Efforts(usd_per_engineer_hour=80))
    return Claim(
        "70B tuned for under $600",
        verdict([machine.p90 < 600, people.p90 < 600]),
        [f"QLoRA, 5,000 rows of {TOKENS_A_ROW} tokens, {EPOCHS} epochs, one A100 80 GB at ${price.usd_per_hour:g}: {time:.1f} hours, "
         f"${time * price.usd_per_hour:.2f} for the bare run",
         f"three runs until one is kept, setup, evaluation, storage, failures: ${machine.p50:,.2f} (P50), ${machine.p90:,.2f} (P90)",
         f"with 16 hours of an engineer at $80: ${people.p50:,.0f} (P50), ${people.p90:,.0f} (P90)"],
    )  # fmt: skip


def distilled() -> Claim:
    """Published: torchtune's Llama 3.1 8B into 3.2 1B on HellaSwag (acc_norm), as shares of the teacher and of the gap closed.

    Table 2 of the source: the tuned teacher, the student tuned without it, the distilled student.
    """
    teacher, control, student, asked = 0.7951, 0.6132, 0.6157, 0.95
    kept, closed = student / teacher, (student - control) / (teacher - control)
    here = {
        "banking77, 15 of 30 layers": (0.715, 0.740, 0.745),
        "banking77, 10 layers, with unlabelled requests": (0.715, 0.700, 0.575),
        "ticket cards (ROUGE-L), 15 layers": (0.346, 0.301, 0.296),
        "ticket cards (ROUGE-L), 10 layers": (0.337, 0.260, 0.255),
        "dialogues (ROUGE-L), 15 layers": (0.381, 0.270, 0.294),
        "dialogues (ROUGE-L), 10 layers": (0.381, 0.166, 0.168),
    }
    measured = [
        f"Measured here, {name}: {distilled:.3f}, {distilled / whole:.0%} of the teacher's {whole:.3f}; the same student "
        f"without a teacher has {alone:.3f}, {alone / whole:.0%} (benchmarks/distill_tasks.py, benchmarks/records/results.md)"
        for name, (whole, alone, distilled) in here.items()
    ]
    return Claim(
        "A distilled model keeps 95 % of its teacher",
        "holds only under some settings"
        if max(kept, *(item / whole for whole, _, item in here.values())) >= asked
        else "does not hold",
        [f"torchtune, Llama 3.1 8B into Llama 3.2 1B on HellaSwag: {student:.4f}, {kept:.1%} of the teacher's {teacher:.4f}; the same "
         f"student tuned without a teacher has {control:.4f}, {control / teacher:.1%}: distilling closes {closed:.1%} of the gap between "
         "the two (table 2 of pytorch.org/blog/llama-into-torchtune)",
         *measured,
         "A share of the teacher says little: a student that was never distilled may keep most of it. `tuneloop distill` prints the share "
         "of the teacher, the difference to the same student without a teacher, and the share of that gap, each with an interval"],
    )  # fmt: skip


# --- the page ----------------------------------------------------------------------------------

INTRO = """# Rules of thumb, checked

Written by `python benchmarks/claims.py` from the planner's own results and the bundled prices; do not edit. Memory is
what a GPU must have (context and fragmentation included) for rows of 2,048 tokens one at a time, with gradient
checkpointing, FlashAttention and a fused loss, unless a line says otherwise. How far these numbers can be trusted is
measured in `benchmarks/plan.py`. *Holds only under some settings* means that some of the lines below the claim support
it and others do not.

| claim | verdict |
|---|---|
"""


def claims() -> list[Claim]:
    """All claims, with the bundled prices only."""
    with tempfile.TemporaryDirectory() as nothing:
        before = os.environ.get("XDG_CONFIG_HOME")
        os.environ["XDG_CONFIG_HOME"] = nothing
        try:
            prices = load_prices()
        finally:
            os.environ.pop("XDG_CONFIG_HOME") if before is None else os.environ.update(XDG_CONFIG_HOME=before)
    plain: list[Callable[[], Claim]] = [full_8b, lora_8b, qlora_8b, full_70b, lora_70b, qlora_70b, time_8b, time_70b, qlora_speed,
                                        prefix_speed]  # fmt: skip
    return [
        *(claim() for claim in plain),
        bills(prices),
        saved_prompt(),
        million_requests(),
        self_hosting(prices),
        under_600(prices),
        distilled(),
    ]


def page() -> str:
    """The page as text."""
    found = claims()
    rows = "".join(f"| {claim.text} | {claim.verdict} |\n" for claim in found)
    parts = [
        f"\n## {claim.text}\n\n**{claim.verdict.capitalize()}.**\n\n" + "".join(f"- {w}\n" for w in claim.why)
        for claim in found
    ]
    text = (INTRO + rows + "".join(parts)).replace("$", "\\$")
    return "\n".join(wrapped for line in text.split("\n") for wrapped in _wrapped(line))


def _wrapped(line: str) -> list[str]:
    """A line of at most 120 characters, or several; rows of tables and titles stay whole."""
    if line.startswith(("|", "#")):
        return [line]
    indent = "  " if line.startswith("- ") else ""
    return textwrap.wrap(line, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [line]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
