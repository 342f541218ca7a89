"""Words, sentences, languages and overlaps in the scripts of the world."""

import dataclasses

import pytest

from t5x_lite.corpus import text
from t5x_lite.corpus.code_languages import language_of
from t5x_lite.corpus.fineweb import FineWeb
from t5x_lite.corpus.gopher import GopherQuality
from t5x_lite.corpus.language import Language, tag
from t5x_lite.corpus.limits import Decontaminate, Repair

SPACED = {
    "हिन्दी भाषा": 2, "தமிழ் மொழி": 2, "الْعَرَبِيَّة": 1, "বাংলা": 1, "שָׁלוֹם": 1, "do\u0302\u0323ng": 1,
    "తెలుగు భాష": 2, "ಕನ್ನಡ": 1, "മലയാളം": 1, "ਪੰਜਾਬੀ": 1, "ગુજરાતી": 1, "සිංහල": 1, "አማርኛ ቋንቋ": 2,
    "ქართული ენა": 2, "մայրենի լեզու": 2, "می\u200cخواهم": 1, "한국어 문장": 2, "tiếng Việt": 2,
    "Об\u2019єднання": 1, "e\u0301te\u0301": 1,
}  # fmt: skip
UNSPACED = {
    "下列关于细胞膜结构与功能的叙述": ["下列", "关于", "细胞"],
    "日本の古い水車": ["日本", "の", "古い", "水車"],
    "นี่คือประโยคภาษาไทย": ["นี่", "คือ", "ประโยค", "ภาษา", "ไทย"],
    "ខ្ញុំស្រឡាញ់ប្រទេសកម្ពុជា។": ["ខ្ញុំ", "ស្រឡាញ់", "ប្រទេស", "កម្ពុជា", "។"],
    "ພາສາລາວເປັນພາສາ": ["ພາສາ", "ລາວ", "ເປັນ", "ພາສາ"],
}


@pytest.mark.parametrize("value", SPACED)
def test_marks_belong_to_letters(value):
    assert len(text.words(value)) == SPACED[value]
    assert "".join(text.words(value)) == value.replace(" ", "")


@pytest.mark.parametrize("value", UNSPACED)
def test_words_without_spaces_between(value):
    pytest.importorskip("icu4py", reason="needs the extra `corpus`")
    assert text.words(value)[: len(UNSPACED[value])] == UNSPACED[value]
    assert "".join(text.words(value)) == "".join(text.units(value)) == value
    assert text.words(f"Python{value}2") == ["Python", *text.words(value), "2"]


def test_units_of_scripts_without_spaces_are_characters_with_their_marks():
    assert text.units("a big 日本 ที่") == ["a", "big", "日", "本", "ที่"]


SENTENCES = {
    "यह पहला वाक्य है। यह दूसरा है।": 2, "这是。那是！真的？": 3,
    "هل هذا صحيح؟ نعم.": 2, "یہ ایک ہے۔ یہ دو ہے۔": 2,
    "Սա մեկն է։ Սա երկուսն է։": 2, "ይህ አንድ ነው። ይህ ሁለት ነው።": 2, "ខ្ញុំ។ អ្នក។": 2, "သည်။ ပါ။": 2,
    "ประโยคแรก ประโยคที่สอง": 2, "One. Two. Mr. Smith is three.": 3,
}  # fmt: skip


@pytest.mark.parametrize("value", SENTENCES)
def test_sentences_end_with_the_marks_of_their_script(value):
    assert text.count_sentences(value) == SENTENCES[value]


def test_lines_that_end_as_their_script_has_it():
    for line in (
        "यह एक बहुत लंबा वाक्य है जो यहाँ समाप्त होता है।",
        "这是一个很长的句子。",
        "هل هذا صحيح؟",
    ):
        only = FineWeb(max_short_lines=None, max_repeated_characters=None, max_newlines=None)
        assert only.broken("\n".join([line] * 4)) is None
        assert only.broken("\n".join([line[:-1]] * 4)) == "end_mark_lines"


def test_near_duplicates_keep_vowel_signs():
    assert text.comparable("दिन") != text.comparable("दान") != text.comparable("दन")
    assert text.comparable("Été, n° 12!") == text.comparable("ete n 7")
    assert text.comparable("no. 12", digits=True) != text.comparable("no. 7", digits=True)


QUESTIONS = {
    "zh": "下列关于细胞膜结构与功能的叙述正确的是哪一项",
    "ja": "日本の古い水車はどのように使われていたか説明しなさい",
    "th": "โรงสีเก่าตั้งอยู่ริมแม่น้ำตรงทางเข้าหมู่บ้านใช่หรือไม่",
    "hi": "पुरानी चक्की नदी के किनारे गाँव के प्रवेश द्वार पर क्यों खड़ी है और कौन उसे चलाता है",
    "ko": "오래된 물레방아는 왜 강가의 마을 입구에 서 있으며 누가 그것을 고쳐야 하는지 설명하시오",
}


@pytest.mark.parametrize("language", QUESTIONS)
def test_decontamination_in_every_script(tmp_path, language):
    question = QUESTIONS[language]
    (tmp_path / "eval.txt").write_text(f"\ufeff{question}\r\n", encoding="utf-8")
    step = Decontaminate((str(tmp_path / "eval.txt"),))

    def found(value):
        return step({"text": value, "url": "", "scores": {}})

    assert found(f"前文。 {question}? 後文。") == "Decontaminate/overlap with eval.txt"
    half = question[: len(question) // 2]
    assert found(f"{half} x {half}") is None
    counted = {"text": question, "url": "", "scores": {}}
    assert dataclasses.replace(step, drop=False)(counted) is None and counted["counts"]


def test_numbers_count_in_decontamination(tmp_path):
    (tmp_path / "sums.txt").write_text("What is 12 plus 5 times 9?\n")
    step = Decontaminate((str(tmp_path / "sums.txt"),))
    assert step({"text": "What is 3 plus 71 times 2?", "url": ""}) is None
    assert step({"text": "so: what is 12 plus 5 times 9 then", "url": ""})


def test_tags_in_all_spellings_are_one_language():
    for spelling in ("en", "EN", "eng", "English", "en-US", "en_GB", "eng_Latn", "en-Latn-US"):
        assert tag(spelling) == "en"
    assert {tag(s) for s in ("zh", "zho_Hans", "chi", "cmn_Hani", "zh-TW")} == {"zh"}
    assert {tag(s) for s in ("de", "ger", "deu_Latn")} == {"de"} and tag("arb_Arab") == "ar"
    assert tag("yue") == "yue" and tag("und") == "" and tag("iw") == "he"
    document = {"text": "x", "language": "deu_Latn", "scores": {}}
    assert Language(languages=("ger",))(document) is None and document["language"] == "de"
    assert Language(languages=("en",))(document) == "Language/other"


def test_rules_about_natural_language_pass_source_code():
    code = {"text": "x=1\n\n\n\ny = 2", "language": "python", "code": True, "scores": {}, "url": ""}
    for step in (GopherQuality(), FineWeb(), Language(languages=("en",)), Repair()):
        assert step(code) is None
    assert code["text"] == "x=1\n\n\n\ny = 2\n"
    assert Language(languages=("en", "rust"))(code) == "Language/other"
    lua = {"text": "a", "language": "lua", "code": False, "scores": {}, "url": ""}  # Luba-Lulua
    assert Language(languages=("en",))(lua) == "Language/other"


FILES = {
    "Makefile": ("all:", "makefile"), "Dockerfile.dev": ("FROM x", "dockerfile"),
    "CMakeLists.txt": ("", "cmake"), "a.toml": ("", "toml"), "a.dart": ("", "dart"),
    "a.vue": ("", "vue"), "a.ex": ("", "elixir"), "a.tex": ("", "tex"), "a.html": ("", "html"),
    "package.json": ("{}", "json"), "a.h": ("int f(void);", "c"),
    "b.h": ("namespace a {\n}", "cpp"), "c.h": ("@interface A\n", "objective-c"),
    "a.m": ("function y = f(x)\n", "matlab"), "b.m": ("#import <A.h>\n", "objective-c"),
    "a.v": ("module m(input a);", "verilog"), "b.v": ("Theorem t : True.\nProof.", "coq"),
    "a.pl": ("use strict;\nmy $x;", "perl"), "b.pl": (":- module(m, []).\n", "prolog"),
    "a.ts": ("const a = 1", "typescript"), "b.ts": ("<!DOCTYPE TS><TS>", "xml"),
    "run": ("#!/usr/bin/env -S python3 -u\n", "python"), "go": ("#!/bin/bash -e\n", "shell"),
    "notes": ("some text", None), "a.unknown": ("x", None), "A.PY": ("", "python"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_languages_of_files(name):
    head, language = FILES[name]
    assert language_of(name, head) == language
