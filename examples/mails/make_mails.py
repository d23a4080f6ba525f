"""Write the data of `tuneloop demo`: customers' mails to an invented shop, each with its card under company policy.

    python examples/mails/make_mails.py                    # the packaged file
    python examples/mails/make_mails.py --rows 50 --seed 7 --out more.jsonl

The same seed gives the same bytes. `README.md` next to this file has the policy.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

PACKAGED = Path(__file__).resolve().parents[2] / "src" / "tuneloop" / "pipeline" / "demo" / "mails.jsonl.gz"
SHOP, PREFIX = "Kestrel Yard", "KY"

# Catalogue name: hazard class, lowest and highest price, what customers call it.
ITEMS: dict[str, tuple[str, int, int, tuple[str, ...]]] = {
    "cordless drill": ("battery", 59, 189, ("cordless drill", "drill", "18 volt drill", "drill driver")),
    "leaf blower": ("battery", 79, 219, ("leaf blower", "blower", "battery blower")),
    "power bank": ("battery", 19, 69, ("power bank", "powerbank", "portable charger")),
    "head torch": ("battery", 15, 59, ("head torch", "headtorch", "head lamp", "headlamp")),
    "robot mower": ("battery", 380, 890, ("robot mower", "mowing robot", "robotic mower")),
    "camping stove": ("gas", 22, 95, ("camping stove", "stove", "camp cooker", "gas burner")),
    "gas lantern": ("gas", 18, 64, ("gas lantern", "lantern", "camping lantern")),
    "patio heater": ("gas", 120, 340, ("patio heater", "terrace heater", "outdoor heater")),
    "wood stain": ("chemical", 12, 48, ("wood stain", "tin of stain", "fence stain")),
    "paint stripper": ("chemical", 9, 36, ("paint stripper", "stripper", "bottle of paint remover")),
    "pool chlorine": ("chemical", 16, 58, ("pool chlorine", "chlorine tablets", "tub of chlorine")),
    "pressure washer": ("", 89, 320, ("pressure washer", "jet washer", "power washer")),
    "garden hose": ("", 18, 74, ("garden hose", "hose", "hosepipe")),
    "tent": ("", 75, 420, ("tent", "two man tent", "family tent", "dome tent")),
    "sleeping bag": ("", 28, 160, ("sleeping bag", "down bag", "winter sleeping bag")),
    "hiking boots": ("", 60, 210, ("pair of hiking boots", "pair of boots", "pair of walking boots")),
    "rucksack": ("", 35, 180, ("rucksack", "backpack", "65 litre rucksack")),
    "folding chair": ("", 14, 62, ("folding chair", "camp chair", "fold-up chair")),
    "hammock": ("", 17, 70, ("hammock", "garden hammock", "travel hammock")),
    "work gloves": ("", 6, 28, ("pair of work gloves", "pair of gloves", "pair of leather gloves")),
    "tool box": ("", 16, 88, ("tool box", "toolbox", "tool chest")),
    "workbench": ("", 85, 310, ("workbench", "work bench", "folding workbench")),
    "ladder": ("", 54, 240, ("ladder", "step ladder", "telescopic ladder")),
    "hedge trimmer": ("", 49, 170, ("hedge trimmer", "hedge cutter", "trimmer")),
    "cool box": ("", 24, 130, ("cool box", "coolbox", "camping fridge")),
    "camp bed": ("", 33, 115, ("camp bed", "campbed", "folding bed")),
    "wheelbarrow": ("", 45, 150, ("wheelbarrow", "barrow", "garden barrow")),
    "rain jacket": ("", 39, 195, ("rain jacket", "waterproof", "waterproof jacket")),
}  # fmt: skip

# What happened -> the queue, and how customers say so; {it} is the item. Words of other queues occur in all of them.
PROBLEMS: dict[str, tuple[str, ...]] = {
    "delivery": (
        "the {it} still isn't here", "no sign of the {it} so far", "I am still waiting for my {it}",
        "tracking says the {it} was delivered but there is nothing on the porch", "the {it} has been stuck in a depot",
        "the driver left a card and I have not seen the {it} since", "where has my {it} got to",
        "the {it} seems to have vanished somewhere between your warehouse and me",
        "our neighbours don't have the {it} either, and the courier shrugs", "nobody has brought the {it} yet",
        "the parcel with the {it} went back and forth between two depots and then silence",
        "you promised the {it} in three days, it never came", "the {it} is lost, says the courier, ask the shop",
        "status of the {it} is 'out for delivery', every day the same",
    ),
    "claims": (
        "the {it} came out of the box with a crack right through it", "the {it} arrived in pieces",
        "wrong colour: that is not the {it} I picked", "half of the screws for the {it} are missing from the box",
        "the box was soaked and so is the {it}", "what you sent is not my {it} but somebody else's order",
        "on unpacking, the {it} had a dent the size of a fist", "the {it} was delivered used, with mud on it",
        "a part of the {it} was snapped off when I opened the parcel", "the {it} had been squashed on the way",
        "the {it} in the parcel is the wrong size, the label says otherwise",
        "I opened the box and the {it} is scratched all over", "there was only an empty box where the {it} should be",
        "the {it} turned up torn, the packaging was fine though",
    ),
    "warranty": (
        "the {it} gave up last weekend", "after a lot of faithful use the {it} simply stopped working",
        "a seam of the {it} has come apart, and I look after my things", "the {it} won't do what it should any more",
        "the handle of the {it} broke off while I was using it normally", "the {it} has worn out far too soon",
        "the {it} died on me in the middle of a job", "since Monday the {it} makes a grinding noise and does nothing",
        "the {it} was fine at first, now it is useless", "the {it} failed, and I have hardly used it",
        "something inside the {it} has come loose and rattles, it's no good like this",
        "the {it} lasted until the first cold morning, then it was over", "rust has eaten a hole into the {it}",
        "the {it} folded under me, the rivet is gone",
    ),
    "returns": (
        "I don't need the {it} any more", "the {it} is nice but not for us", "my wife bought the same {it}, so one is spare",
        "the {it} turned out too big for the shed", "I would like to send the {it} back", "changed my mind about the {it}",
        "the {it} is unopened and I'd rather have the money", "our trip is off, so the {it} has no purpose now",
        "the {it} was meant as a present and he has one already", "I ordered the {it} by mistake",
        "found a cheaper {it} round the corner, sorry", "the {it} does its job but I had imagined something else",
        "can I still give the {it} back? It's in its box", "the {it} looked different on the website, not a fault, just taste",
    ),
    "billing": (
        "my card was charged twice for the {it}", "the invoice for the {it} is higher than the price on your page",
        "I cancelled the {it} the same hour and you took the money all the same",
        "the discount code was ignored when I paid for the {it}", "there are two payments for one {it} on my statement",
        "you took the money for the {it} again, a week after the first time", "the {it} was on offer and I paid full price",
        "I was billed for a {it} that I never ordered", "the refund for the {it} that you confirmed never reached my account",
        "shipping was free above fifty, yet the {it} was charged with it", "the {it} appears on this month's bill again",
        "PayPal and the card both paid for the {it}", "why does the statement show the {it} at the old price",
        "the voucher is used up but the {it} was charged in full",
    ),
}  # fmt: skip
DANGERS: dict[str, tuple[str, ...]] = {  # likewise of the queue safety, by the item's hazard class
    "battery": (
        "the {it} got so hot that I dropped it", "the side of the {it} has swollen up like a balloon",
        "sparks flew when I touched the {it}", "smoke came out of the {it} while it was charging",
        "the {it} smelled of burnt plastic all night", "the {it} melted a hole into the carpet",
    ),
    "gas": (
        "the {it} hisses even when it is off", "a flame shot out of the {it}", "the {it} nearly set the curtain on fire",
        "there is a strong smell of gas around the {it}", "the valve of the {it} will not close any more",
        "the {it} singed my eyebrows",
    ),
    "chemical": (
        "there is a strange smell from the {it} and my eyes water", "something is leaking from the {it} onto the shelf",
        "my dog is ill since he licked the {it}", "the {it} foamed over and I have a rash on both arms",
        "the lid of the {it} burst off in the cupboard", "my daughter coughs since we opened the {it}",
    ),
    "": (
        "the {it} gave way and my son has a cut on his head", "the {it} has a sharp edge that went through my finger",
        "the {it} collapsed and I hurt my back", "I have had a rash since I touched the {it}",
        "a splinter of the {it} hit me near the eye", "my hand got caught in the {it} and had to be stitched",
    ),
}  # fmt: skip

DEMANDS = (
    "I want my money back.", "Please sort it out.", "What happens now?", "I'd like a new one.", "A refund, please.",
    "Tell me where to send it.", "Can you help?", "I expect an answer this week.", "Could someone call me?",
    "Send me a label, will you?", "I'd be happy with a replacement.", "What are my options?", "Please repair it.",
    "I'd rather not go to court over this.", "A voucher would do as well.", "Just tell me what you need from me.",
    "Surely you can do something for an old customer.", "Please advise.", "Do I get a discount on the next one?",
)  # fmt: skip

STORIES = (
    "My brother in law says I should have gone to the market instead.", "It's been one of those weeks.",
    "We are off to the coast on Friday.", "The dog has had an operation, so forgive the tone.", "I run a small campsite.",
    "I rang twice and was put in a queue with music I can still hear.", "The garden looks like a jungle by now.",
    "I'm not usually one to complain.", "We have bought from you for years.", "Your chat bot sent me in circles.",
    "The kids were looking forward to it.", "It rained all week anyway.", "I took photos, they are attached.",
    "I have the receipt somewhere.", "Grandad is ninety and still builds his own sheds.", "The scouts meet here every Thursday.",
    "I had the same thing with another shop last year.", "No idea who to write to, so I write to you.",
    "Your colleague on the phone was very kind, by the way.", "My English is not so good, excuse me.",
    "The shed roof is done, apart from this.", "It was for my daughter's first trip abroad.", "Nice website, by the way.",
    "I work nights, so write rather than ring.", "We moved house in between, which didn't help.",
    "The instructions are in six languages, none of them useful.", "I have told all this to someone before.",
    "Half of the allotment club orders from you because of me.", "My husband thinks I'm making a fuss.",
    "I'd have come by, but your shop is three hours away.", "The weather turns next week, so there is some hurry.",
    "It stands in the garage at the moment.", "Let me know if you need a picture.", "I teach crafts at a school.",
)  # fmt: skip

GREETINGS = (
    "Hello,", "Hi there,", "Dear team,", "Good morning,", "Hi", "To whom it may concern,", "Dear Kestrel Yard,", "Hey,",
    "Good evening,", "Dear Sir or Madam,", "", "", "",
)  # fmt: skip
NAMES = (
    "Mira Holt", "J. Okafor", "Tomasz W.", "Ellen Brandt", "Priya N.", "Gordon Pike", "Lucía Ferrer", "Sam", "Mrs A. Teague",
    "Henrik Dahl", "Yusuf K.", "Carol-Ann Moss", "B. Lindqvist", "Noor", "Pat Devlin", "Ines Rocha", "Owen Rees", "D. Marsh",
    "Aoife Byrne", "Karl-Heinz Roth", "Femi A.", "Greta S.", "R. Castellano", "Wendy Poole", "Ivo Petrov", "Maud Ellery",
)  # fmt: skip
ENDINGS = ("Regards, {n}", "Thanks, {n}", "{n}", "Best wishes\n{n}", "Yours, {n}", "Cheers {n}", "-- \n{n}\nSent from my phone",
           "Kind regards,\n{n}", "thx", "Many thanks in advance, {n}", "{n}\n{j}", "Yours faithfully\n{n}\n{j}", "")  # fmt: skip
JOBS = ("Pike Landscaping, est. 1998", "Treasurer, Hillside Scouts", "Lakeside Camping", "Facilities, Ward & Sons",
        "This mail is confidential.", "Please think before you print.", "Mobile only, no calls before 10")  # fmt: skip

MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December")  # fmt: skip
ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth",
    "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth", "nineteenth", "twentieth",
    "twenty-first", "twenty-second", "twenty-third", "twenty-fourth", "twenty-fifth", "twenty-sixth", "twenty-seventh",
    "twenty-eighth", "twenty-ninth", "thirtieth", "thirty-first",
)  # fmt: skip
ONES = ("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
        "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")  # fmt: skip
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
CURRENCIES = {"EUR": ("€", "euros"), "GBP": ("£", "pounds"), "USD": ("$", "dollars")}

DATED = {  # how the date of a queue is introduced
    "delivery": ("ordered on {d}", "I placed the order on {d}", "dispatched {d} according to your mail", "from {d}"),
    "claims": ("it came on {d}", "delivered {d}", "received on {d}", "the parcel came {d}"),
    "warranty": ("bought {d}", "I bought it on {d}", "the receipt says {d}", "purchase date {d}"),
    "returns": ("it arrived on {d}", "delivered {d}", "I have had it since {d}", "received {d}"),
    "billing": ("charged on {d}", "it left my account on {d}", "booked {d}", "the payment is dated {d}"),
    "safety": ("bought on {d}", "it arrived {d}", "I got it on {d}", "in use since {d}"),
}  # fmt: skip
PRICED = ("It cost {a}.", "I paid {a}.", "Price: {a}.", "{a} it was.", "That's {a} after all.", "The amount is {a}.",
          "We are talking about {a}.", "For {a} I had expected more.", "{a} is a lot of money to me.")  # fmt: skip
NUMBERED = ("Order {o}.", "Order number {o}.", "My order: {o}", "Ref {o}.", "It's order {o}.", "Order no. {o}.",
            "The number is {o}.", "(order {o})")  # fmt: skip
OTHERS = ("My other order {o}, the {i}, came without trouble.", "Not {o}, that was the {i} and it's fine.",
          "The {i} from {o} is great, by the way.", "Please leave {o} ({i}) as it is.",
          "I also have {o} on its way, with a {i}; no worries there.")  # fmt: skip
FEES = ("Postage was {a} on top.", "The {a} for shipping you may keep.", "I paid {a} at the post office for nothing.")
TIERS = ("standard", "plus", "trade")


@dataclass(frozen=True)
class Case:
    """What a mail is about."""

    queue: str
    item: str
    order: str | None
    day: date | None
    cents: int
    currency: str
    sent: date
    tier: str

    @property
    def hazard(self) -> str:
        """The item's hazard class; empty: none."""
        return ITEMS[self.item][0]


def action(case: Case) -> str:
    """What company policy has support do."""
    amount = case.cents / 100
    if case.queue == "safety":
        return {"battery": "stop_and_collect", "gas": "stop_and_inspect", "chemical": "stop_and_dispose"}.get(
            case.hazard, "incident_report"
        )
    if case.order is None:
        return "ask_order_number"
    if case.queue == "delivery":
        return "resend" if case.tier == "trade" else "trace_priority" if amount >= 150 else "trace"
    if case.queue == "claims":
        return "refund_and_dispose" if case.hazard else "refund_and_keep" if amount < 30 else "collect_and_replace"
    if case.queue == "warranty":
        late = case.day is not None and (case.sent - case.day).days > 730
        return "repair_at_cost" if late else "replace" if amount < 30 else "repair"
    if case.queue == "returns":
        if case.hazard:
            return "no_return"
        days = 60 if case.tier == "plus" else 30
        late = case.day is not None and (case.sent - case.day).days > days
        return "store_credit" if late else "send_label"
    return "refund_after_approval" if amount >= 100 else "refund_now"


def card(case: Case) -> str:
    """The card of a mail, as compact JSON."""
    fields = {
        "order": case.order, "item": case.item, "date": case.day.isoformat() if case.day else None,
        "amount": f"{case.cents / 100:.2f} {case.currency}", "queue": case.queue, "action": action(case),
    }  # fmt: skip
    return json.dumps(fields, separators=(",", ":"))


def draw_case(rng: random.Random) -> Case:
    """A case by chance; queues and hazards have their usual shares."""
    queue = rng.choices((*PROBLEMS, "safety"), (20, 18, 18, 18, 14, 12))[0]
    item = rng.choice([item for item in ITEMS if queue != "warranty" or ITEMS[item][0] != "chemical"])
    _, low, high, _ = ITEMS[item]
    cents = 100 * rng.randint(low, high) + rng.choice((0, 0, 0, 90, 95, 99, 50))
    sent = date(2025, 1, 6) + timedelta(days=rng.randrange(330))
    ages: dict[str, Callable[[], int]] = {
        "delivery": lambda: rng.randint(4, 25), "claims": lambda: rng.randint(1, 9), "billing": lambda: rng.randint(1, 30),
        "safety": lambda: rng.randint(1, 300), "warranty": lambda: rng.choice((rng.randint(60, 640), rng.randint(830, 1500))),
        "returns": lambda: rng.choice((rng.randint(2, 24), rng.randint(38, 56), rng.randint(66, 120))),
    }  # fmt: skip
    day: date | None = sent - timedelta(days=ages[queue]())
    if queue in ("delivery", "claims", "billing", "safety") and rng.random() < 0.12:
        day = None
    number = None if rng.random() < 0.09 else f"{PREFIX}-{rng.randrange(10_000, 99_999)}"
    currency = rng.choices(tuple(CURRENCIES), (5, 3, 2))[0]
    return Case(queue, item, number, day, cents, currency, sent, rng.choices(TIERS, (6, 2, 2))[0])


def number_in_words(n: int) -> str:
    """A whole number below 1,000 in English."""
    if n >= 100:
        rest = f" and {number_in_words(n % 100)}" if n % 100 else ""
        return f"{ONES[n // 100]} hundred{rest}"
    return ONES[n] if n < 20 else TENS[n // 10] + (f"-{ONES[n % 10]}" if n % 10 else "")


def written_amount(rng: random.Random, cents: int, currency: str) -> str:
    """An amount as people write it."""
    sign, word = CURRENCIES[currency]
    whole, rest = divmod(cents, 100)
    plain = str(whole) if rest == 0 else f"{whole}.{rest:02d}"
    forms = [
        f"{sign}{plain}",
        f"{sign}{whole}.{rest:02d}",
        f"{plain} {word}",
        f"{currency} {whole}.{rest:02d}",
        f"{plain} {currency}",
    ]
    if currency == "EUR":
        forms += [f"{whole},{rest:02d} €", f"{whole},{rest:02d} EUR"]
    if rest == 0:
        forms += [f"{number_in_words(whole)} {word}"] * 2
    return rng.choice(forms)


def written_day(rng: random.Random, day: date, sent: date) -> str:
    """A date as people write it; without the year only where it is the one in which the mail was sent."""
    month, suffix = (
        MONTHS[day.month - 1],
        "th" if 10 < day.day < 14 else {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10, "th"),
    )
    if (sent - day).days == 1 and rng.random() < 0.7:
        return "yesterday"
    if day.year != sent.year:
        return rng.choice((f"{day.day} {month} {day.year}", f"{month} {day.day}, {day.year}", f"{day:%d/%m/%Y}", day.isoformat(),
                           f"the {ORDINALS[day.day - 1]} of {month} {day.year}", f"{day.day}.{day.month}.{day.year}"))  # fmt: skip
    return rng.choice((
        f"{day.day} {month}", f"{month} {day.day}{suffix}", f"the {day.day}{suffix} of {month}", f"{day:%d/%m}", f"{day:%d/%m/%Y}",
        day.isoformat(), f"the {ORDINALS[day.day - 1]} of {month}", f"{day.day} {month[:3]}", f"{day.day}.{day.month}.",
    ))  # fmt: skip


def written_order(rng: random.Random, order: str) -> str:
    """An order number as people write it."""
    digits = order.removeprefix(f"{PREFIX}-")
    return rng.choice(
        (order, order, order, order.lower(), f"{PREFIX}{digits}", f"{PREFIX} {digits}", f"#{digits}", digits)
    )


def with_typos(rng: random.Random, text: str, item: float) -> str:
    """A text with slips of the fingers in words of five letters or more; numbers stay."""
    sentence = text.split(" ")
    for path, word in enumerate(sentence):
        if len(word) > 4 and word.isalpha() and rng.random() < item:
            i = rng.randrange(1, len(word) - 2)
            slips = (
                word[:i] + word[i + 1] + word[i] + word[i + 2 :],
                word[:i] + word[i + 1 :],
                word[:i] + word[i] + word[i:],
            )
            sentence[path] = rng.choice(slips)
    return " ".join(sentence)


def upper_first(text: str) -> str:
    """A text with a capital letter at its start."""
    return text[:1].upper() + text[1:]


def mail(rng: random.Random, case: Case) -> str:
    """The mail in which a customer describes a case."""
    name = rng.choice(ITEMS[case.item][3])
    problem = upper_first(rng.choice(PROBLEMS.get(case.queue) or DANGERS[case.hazard]).format(it=name))
    problem += "?" if problem.split()[0] in ("Where", "Why", "Can") else "."
    facts = [rng.choice(PRICED).format(a=written_amount(rng, case.cents, case.currency))]
    if case.day:
        facts.append(upper_first(rng.choice(DATED[case.queue]).format(d=written_day(rng, case.day, case.sent))) + ".")
    quoted = ""
    if case.order:
        number = written_order(rng, case.order)
        if rng.random() < 0.15:
            text = rng.choice(
                ("Thank you for your order {o}", "Your order {o} has been confirmed", "Invoice for order {o}")
            )
            quoted = f"\n> {text.format(o=number)}\n> {SHOP} customer service"
        else:
            facts.append(rng.choice(NUMBERED).format(o=number))
    extras = rng.sample(STORIES, rng.choice((0, 1, 1, 2)))
    if rng.random() < 0.25:
        other = rng.choice([item for item in ITEMS if item != case.item])
        number = written_order(rng, f"{PREFIX}-{rng.randrange(10_000, 99_999)}")
        extras.append(rng.choice(OTHERS).format(o=number, i=rng.choice(ITEMS[other][3])))
    if rng.random() < 0.15:
        extras.append(
            rng.choice(FEES).format(a=written_amount(rng, rng.choice((390, 490, 500, 695, 1200)), case.currency))
        )
    rng.shuffle(facts)
    sentences = [problem, *facts]
    if rng.random() < 0.35:  # the matter comes late
        sentences = [*facts, problem]
    for extra in extras:
        sentences.insert(rng.randrange(len(sentences) + 1), extra)
    if rng.random() < 0.75:
        sentences.append(rng.choice(DEMANDS))
    body = with_typos(rng, " ".join(sentences), rng.choice((0, 0, 0.04, 0.1)))
    body = body.lower() if rng.random() < 0.08 else body
    ending = rng.choice(ENDINGS).format(n=rng.choice(NAMES), j=rng.choice(JOBS))
    return "\n".join(part for part in (rng.choice(GREETINGS), body, ending) if part) + quoted


def make_rows(number: int, seed: int) -> list[dict[str, str]]:
    """Rows of the data set: `sent`, `tier`, `text`, `card`."""
    rng = random.Random(seed)
    rows = []
    for _ in range(number):
        case = draw_case(rng)
        rows.append({"sent": case.sent.isoformat(), "tier": case.tier, "text": mail(rng, case), "card": card(case)})
    return rows


def as_lines(rows: list[dict[str, str]]) -> bytes:
    """Rows as lines of JSON."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def without_cards(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Mails as they come in."""
    return [{key: value for key, value in row.items() if key != "card"} for row in rows]


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--out", type=Path, default=PACKAGED, help="a .jsonl or .jsonl.gz file")
    options = parser.parse_args()
    data = as_lines(make_rows(options.rows, options.seed))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(gzip.compress(data, 9, mtime=0) if options.out.suffix == ".gz" else data)
    if options.out == PACKAGED:  # and mails to try the tuned model on
        PACKAGED.with_name("new.jsonl").write_bytes(as_lines(without_cards(make_rows(3, options.seed + 1))))


if __name__ == "__main__":
    main()
