"""Text repair, languages, personal data, perplexity, mixing, and what goes to other processes."""

import importlib.util
import pickle
import subprocess
import sys

import pytest

from t5x_lite import cli, config
from t5x_lite.corpus import pii, pii_patterns, text
from t5x_lite.corpus.mixing import Mix, number_of_copies
from t5x_lite.corpus.perplexity import CharacterModel, Perplexity
from t5x_lite.corpus.pii import Pii
from t5x_lite.errors import UserError

ENGLISH = "This is a plain English sentence about the weather, which was rather cold this morning. "
GERMAN = (
    "Das ist ein gewöhnlicher deutscher Satz über das Wetter, das heute Morgen recht kalt war. "
)


def document(text, **fields):
    return {"text": text, "id": "1", "url": "", "language": "", "scores": {}} | fields


def test_words_and_sentences():
    assert text.words("Don't stop, it's 3.5 \u2014 really...") == [
        "Don't", "stop", ",", "it's", "3", ".", "5", "\u2014", "really", "..."
    ]  # fmt: skip
    assert text.count_sentences("Dr. Smith came. He left! Why? No end") == 4
    assert text.count_sentences("One... two.\nThree") == 3
    assert text.count_sentences("这是。那是。") == 2
    assert text.count_sentences("") == 0


def test_repair():
    pytest.importorskip("ftfy")
    assert text.repair("schÃ¶n\r\nwieder\x00 da\u200b \n\n\n\nja") == "schön\nwieder da\n\nja"
    assert text.repair("e\u0301") == "\u00e9"
    assert text.repair("\u201cquoted\u201d \ufb01n") == "\u201cquoted\u201d \ufb01n"
    assert text.repair("\ufb01n", "NFKC") == "fin"
    plain = "It costs 5 \u20ac \u2014 caf\u00e9, na\u00efve, \u0645\u0631\u062d\u0628\u0627."
    assert text.repair(plain) == plain


def test_comparable_text_forgets_what_copies_differ_in():
    assert text.comparable("  The CAF\u00c9, no. 12!") == text.comparable("the cafe\tno 7")
    assert text.comparable("a b") != text.comparable("a c")


def test_language():
    pytest.importorskip("py3langid")
    from t5x_lite.corpus.language import Language, identify

    assert identify(ENGLISH * 2)[0] == "en" and identify(GERMAN * 2)[0] == "de"
    step = Language(languages=("en",))
    assert step(document(ENGLISH * 2)) is None
    assert step(document(GERMAN * 2)) == "Language/other"
    label, score = identify(ENGLISH)
    assert Language(min_score=score)(document(ENGLISH)) is None
    assert Language(min_score=min(1.0, score + 1e-9))(document(ENGLISH)) == (
        "Language/uncertain" if score < 1 else None
    )
    assert Language(min_score=1.0)(document("asdf qwer zxcv")) == "Language/uncertain"
    code = document("x = 1", language="python")
    assert Language()(code) is None and code["scores"] == {"language": 1.0}


PERSONAL = {
    "email": ["john.smith+x@mail.example.org", "A_b@x-y.co.uk"],
    "phone": ["+1 415 555 2671", "+49 (0)30 90182012", "(415) 555-2671", "+442071838750"],
    "ip": ["8.8.8.8", "2001:4860:4860::8888"],
    "card": ["4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005"],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", "NO9386011117947"],
    "key": ["AKIAIOSFODNN7EXAMPLE", "ghp_" + "a1" * 18,
            "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----"],
}  # fmt: skip
MORE_PERSONAL = [  # (kind, text around {}, what is there)
    ("iban", "IBAN {} BIC OPSKATWW", "AT61 1904 3002 3457 3201"),
    ("iban", "{} PLN 300", "PL61 1090 1014 0000 0712 1981 2874"),
    ("iban", "auf {}, bitte", "DE89\u00a03704\u00a00044\u00a00532\u00a00130\u00a000"),
    ("card", "{} 123", "4111 1111 1111 1111"), ("card", "{} 12/26", "5500 0000 0000 0004"),
    ("card", "{}, 12/26", "3782 822463 10005"), ("ip", "the host {} is", "1.2.3.4"),
    ("phone", "T\u00e9l. : {}", "01 42 68 53 00"), ("phone", "ring {} now", "020 7946 0958"),
    ("phone", "Telefon: {}", "030 901820"), ("phone", "\u96fb\u8a71 {}", "03-3501-1511"),
    ("phone", "tel. {}", "06 6982 0000"), ("phone", "tel {}", "(11) 96123-4567"),
    ("phone", "\u7535\u8bdd\uff1a{}", "010 6552 9988"), ("phone", "mobile: {}", "98765 43210"),
    ("phone", "phone {}", "(02) 9374 4000"), ("phone", "tel\u00e9fono {}", "912 345 678"),
    ("key", "key = '{}'", "sk-proj-a8Fk29dLq0Zx7TnB3cVm5Yw1"),
]  # fmt: skip
HARMLESS = [
    "W@x.transpose()", "q @ k", "w@x.T",
    "self.a@b.mean", "logo@2x.png", "icon@3x.webp", "a@b.matmul(c)",
    "getty@tty1.service", "git@host.org:user/repo", "user@machine.local", "+52.520008, +13.404954",
    "class='sk-folding-cube-container-wrapper'", "#sk-three-bounce-loader-inner", "section 8.1.2.3",
    "chapter 4.1.2.3", "\u00a7 1.2.3.4",
    "+1 000 000 people", "1 000 000 000", "1234 5678 9012 3456",
    "0.25 0.50 0.75 1.00", "2024 05 17 12 30", "00 01 02 03 04 05 06", "1990-1995", "page 12-15",
    "978-0-306-40615-7", "0-306-40615-2", "9780306406157", "10.1000/182", "doi:10.1038/nphys1170",
    "version 1.2.3.4", "v10.20.30.40", "192.168.0.1", "127.0.0.1", "256.1.1.1", "2024-05-17",
    "4111 1111 1111 1112", "DE89 3704 0044 0532 0130 01", "user@localhost", "@name", "12:30:45",
    "1,234,567.89", "a::b", "std::string", "3.14159265358979", "+1", "1.2.3", "20240517123456",
]  # fmt: skip


@pytest.mark.parametrize("kind", PERSONAL)
def test_personal_data_is_found_replaced_and_masked(kind):
    pytest.importorskip("phonenumbers", reason="needs the extra `corpus`")
    for value in PERSONAL[kind]:
        changed, found = Pii().replace(f"It is {value} there.")
        assert found == [(kind, value)], value
        assert changed == f"It is {pii.REPLACEMENTS[kind]} there."
        assert Pii().replace(changed)[1] == []
        masked = pii.mask(f"It is {value} there.")
        assert value not in masked and "*" in masked


@pytest.mark.parametrize("kind, around, value", MORE_PERSONAL)
def test_personal_data_beside_words_codes_and_in_national_formats(kind, around, value):
    pytest.importorskip("phonenumbers", reason="needs the extra `corpus`")
    assert Pii().replace(around.format(value))[1] == [(kind, value)]


@pytest.mark.parametrize("value", HARMLESS)
def test_what_only_looks_like_personal_data_stays(value):
    pytest.importorskip("phonenumbers", reason="needs the extra `corpus`")
    assert Pii().replace(f"It is {value} there.") == (f"It is {value} there.", [])


def test_checksums():
    assert pii_patterns.is_card("4111111111111111") and not pii_patterns.is_card("4111111111111112")
    assert not pii_patterns.is_card(
        "9999999999999995"
    )  # Luhn's check alone is passed by one in ten
    assert pii_patterns.is_iban("GB82 WEST 1234 5698 7654 32")
    assert not pii_patterns.is_iban("GB83WEST12345698765432")


def test_documents_with_much_personal_data_may_be_dropped():
    pytest.importorskip("phonenumbers", reason="needs the extra `corpus`")
    two = document("a@b.org c@d.org")
    assert Pii(max_found=1)(two) == "Pii/too_much"
    assert Pii(max_found=2)(two) is None
    assert two["counts"] == {"personal data: email": 2}


def test_perplexity(tmp_path):
    model = CharacterModel(ENGLISH * 20, order=3)
    probabilities = [2 ** -model.bits(c) for c in map(chr, range(32, 127)) if not c.isupper()]
    assert 0.5 < sum(probabilities) < 1.001  # the rest is for characters beyond ASCII
    assert model.bits(ENGLISH) < 1.5 < model.bits(GERMAN) < model.bits("#q~x^z" * 9)
    (tmp_path / "good.txt").write_text(ENGLISH * 20)
    step = Perplexity(f"{tmp_path}/good.txt", max_bits=4.0)
    good = document(ENGLISH)
    assert step(good) is None and 0 < good["scores"]["bits_per_character"] < 1.5
    assert step(document("#q~x^z" * 9)) == "Perplexity/unlikely"
    assert Perplexity(f"{tmp_path}/good.txt", min_bits=4.0)(good) == "Perplexity/too_likely"
    with pytest.raises(UserError, match="can't be read"):
        Perplexity("nowhere")(document("a"))


def test_mixing():
    sizes = {"en": 900, "sw": 100}
    assert Mix().copies(sizes) == {"en": 1.0, "sw": 1.0}
    even = Mix(temperature=0, max_copies=4).copies(sizes)
    assert even == {"en": pytest.approx(4 / 9), "sw": 4.0}
    given = Mix(weights={"sw": 1, "en": 3}, budget_bytes=400).copies(sizes)
    assert given == {"sw": 1.0, "en": pytest.approx(1 / 3)}
    root = Mix(temperature=0.5, budget_bytes=400).copies(sizes)
    assert root["en"] * 900 == pytest.approx(3 * root["sw"] * 100)  # 30 : 10
    assert Mix(weights={"en": 1}).copies(sizes) == {"en": 4.0}
    with pytest.raises(UserError, match="Did you mean 'en'"):
        Mix(weights={"eng": 1}).copies(sizes)
    copies = [number_of_copies(2.25, i / 100) for i in range(100)]
    assert set(copies) == {2, 3} and sum(copies) == 225


def test_steps_travel_with_their_settings():
    with config.fresh():
        config.parse([], ["GopherQuality.min_words=7"])
        from t5x_lite.corpus.gopher import GopherQuality

        step = pickle.loads(pickle.dumps(config.call("GopherQuality")))
    assert step.min_words == 7 and step == GopherQuality(min_words=7)


NASTY = [
    "", " ", "\n\n", "?", "." * 5000, "\U0001f600" * 50, "\u202e\u0645\u0631", "a" * 100_000,
    "{" * 99, "\ufffd\ufffe\x00\x01", "=" * 3000 + "\n" + "- \n" * 99, "1 2 3 " * 99, "\u0e01" * 99,
]  # fmt: skip


@pytest.mark.parametrize("nasty", NASTY, ids=range(len(NASTY)))
def test_no_step_fails_on_any_text(nasty):
    for package in ("ftfy", "py3langid", "rensa", "icu4py", "phonenumbers"):
        pytest.importorskip(package)
    from t5x_lite.corpus import c4, code, fineweb, gopher, language, limits, roots
    from t5x_lite.corpus.duplicates import Duplicates

    steps = (
        limits.Repair(), language.Language(min_score=0), gopher.GopherQuality(), roots.Roots(),
        gopher.GopherQuality(by_spaces=True), gopher.GopherRepetition(), c4.C4(), c4.C4Tfds(),
        gopher.GopherRepetition(count_all=True), c4.C4Paragraphs(), fineweb.FineWeb(), Pii(),
        code.Code(), limits.Limits(max_symbols=0.5),
    )  # fmt: skip
    for step in steps:
        for language_ in ("", "en", "python"):
            reason = step(document(nasty, language=language_))
            assert reason is None or reason.startswith(type(step).__name__ + "/")
    assert len(Duplicates().keys(nasty)) == 15
    assert isinstance(pii.mask(nasty), str)


def test_missing_packages_are_named(monkeypatch, capsys):
    find = importlib.util.find_spec
    absent = ("rensa", "apache_beam")
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n in absent else find(n))
    assert cli.main(["corpus", "--gin_file=corpus/web_en.gin"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "apache_beam" in line and "rensa" in line and "t5x_lite[corpus]" in line
    assert cli.main(["corpus"]) == 2
    assert "such as corpus/web_en.gin" in capsys.readouterr().err


def test_nothing_here_imports_jax():
    code = (
        "import sys; from t5x_lite import config;"
        "config.parse(['corpus/web_en.gin'], ['INPUT=\"x\"', 'OUTPUT=\"y\"']);"
        "import t5x_lite.programs.corpus;"
        "print({'jax', 'flax', 'tensorflow', 'apache_beam'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
