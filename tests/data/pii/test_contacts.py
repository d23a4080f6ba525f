"""Telephone numbers as people type them in short messages: bare, in pieces, glued, short codes; and what only looks like one."""

from __future__ import annotations

import pytest

from tuneloop.data.config import PersonalConfig
from tuneloop.data.pii.redact import find

CONFIG = PersonalConfig()

# The number stands between the signs; nothing else may be touched. Numbers are examples of libphonenumber and of ranges kept for fiction.
NUMBERS = """
Congrats! 2 free tickets are waiting. Reply now or ring «09012345678» before Friday
URGENT we tried to reach u. Your prize is safe, «08712345678» is the line, 10p/min
FREE for 1st week! No1 tone 4 ur mob, just txt NOKIA to «87077» now
Txt STOP to «62468» to end
Text the word WIN to «87121» for a chance
Send STOP to «85555» to opt out
reply YES to «80488» and get it
Final notice, cust care «08718765432»
To claim «08001234567» from a landline
u have a msg waiting «0871-234-5678» BOX95QU
dial «0871 - 2345 - 678» quick
it is «0871 2345 678» then
T&C apply «08451234567»over18s
2 claim call «08712345679»150ppm only
prize line «08712345670»9am-7pm ok
ph:«08701234567»150p
call«09012345679» now x
MobileNo«07400123456» was awarded
hey its me on my new one, «07400123456» save it
«07400 123456» is dads
«07400-123-456» is dads
«+44 (0) 20 7946 0958» is the office
«+44 7400 123456»
«+447400123456»
«0044 7400 123456» thx
«(0)7400 123456» mobile of the plumber
Call «0 8 7 1 2 4 6 0 3 2 4» now
«020 7946 0958» or pop in
«0161 496 0000» for the Manchester branch
«01632 960001» was the landline
«0800 123 4567» is free
Freephone «08001234567»
«0845 1234567» sky line
«0330 123 4567» from mobiles
message from «72727» says I won
our short code is «60611»
my mob is «07700900123»
Sorry, I'll call later. «07400123457» pls
«07400123457» identifier code
hi its Tom «07700900124»
«0117 496 0999»
«4155550132» is my number
call me on «4155550132»
«(415) 555-0132»
«415-555-0132» ok?
«+1 415 555 0132»
my cell: «415.555.0132»
text me at «415 555 0132»
text BUCKS to «47711» to join
ruf mich an «0151 12345678»
«015112345678» ist meine Neue
«01701234567» geht wieder
meine Nummer: «+49 151 12345678»
«030 23125782» im Büro
SMS mit STOP an «72727»
appelle-moi au «06 12 34 56 78»
mon numéro c'est «0612345678»
«0612345678» merci
«06.12.34.56.78»
«+33 6 12 34 56 78»
envoyez STOP par SMS au «36180»
give me a missed call on «9812345678»
whatsapp «98123 45678»
«+91 98123 45678» is my new one
«+91-98123-45678»
SMS BAL to «56161» to know
call «1800 123 456» for the bank
«0412 345 678» is Sheila
«0412345678» is Sheila
ring the office on «02 5550 1234»
«+61 412 345 678»
«(02) 5550 1234»
Text WIN to «199123» (55c)
""".strip().splitlines()

LOOK_ALIKES = """
Order 07400123456 has shipped
your order number is 09012345678
order no. 0871 2345 678 is late
ref 08712345678
Invoice #08712345678 is due
my tracking number 07400123456 shows nothing
ticket id: 07400123456
the serial number is 01632960001
transaction 08001234567 failed
customer no 0800123456
the parcel 07700900123 number
send 50000 to him
I send flowers to 90210
send my card to 10115 Berlin
transfer 87121 to my account
send money to 54321
the reply to 48213 was late
I sent a text in 20231
a text of 12000 words
text size 12 to 50000 px
from 12345 to 87121 people
the price rose from 15000 to 25000
messages went from 10000 to 87121
it costs 1500000 in total
on 07/08/2019 12:30
07-08-2019 and 08-09-2019
2019-07-08 10:11:12
call between 0900 and 1700
open 0900-1700 0930-1600
room 0712 floor 07
0.07400123456
GBP 07911.12
07911
1234567890
9812345678
4155550132
17000000001
1700000000
batch 0612345678
SKU 0412345678
build 20190708.1
version 0.8712.4603
isbn 0306406152
01234567
00000000000
01111111111
0x07400123456
a07400123456b
07400123456789012
the amount of 08712345678.50
0-7-9 is the lead
10 20 30 40 50 60
£08712345678
text us in 5 to 10 minutes
message me in 30 to 45 days
text me from 10000 ft
I got a message from 2019
a text from 10000 people
sent an sms to 50000 customers
message to 20000 users
""".strip().splitlines()


def found(text: str, config: PersonalConfig = CONFIG) -> list[tuple[str, str]]:
    return [(f.kind, text[f.start : f.end]) for f in find(text, config)]


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_in_messages_are_found_whole(text: str) -> None:
    before, value, after = text.replace("»", "«").split("«")
    assert found(before + value + after) == [("PHONE", value)]


@pytest.mark.parametrize("text", LOOK_ALIKES)
def test_orders_amounts_dates_and_postcodes_stay(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize(
    ("region", "number"),
    [
        ("IN", "9812345678"),
        ("ES", "612345678"),
        ("IT", "3123456789"),
        ("GB", "02079460958"),
        ("DE", "03023125782"),
        ("ZA", "0711234567"),
    ],
)
def test_a_bare_number_of_the_own_region_needs_no_word(region: str, number: str) -> None:
    text = f"ok {number} then"
    assert found(text, PersonalConfig(region=region)) == [("PHONE", number)]
    assert found(f"order {number} then", PersonalConfig(region=region)) == []


def test_two_numbers_and_their_prices_are_told_apart() -> None:
    assert found("ring 09012345678 (1.50ppm) or txt 4 to 87121 (50p)") == [("PHONE", "09012345678"), ("PHONE", "87121")]


def test_ten_digits_without_a_word_are_no_number_in_north_america() -> None:
    assert found("it says 4155550132 there", PersonalConfig(region="US")) == []
