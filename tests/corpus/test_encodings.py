"""Text in many encodings, whole and damaged: one guess a file, and a bad byte costs a character."""

import pytest

pytest.importorskip("resiliparse")

from t5x_lite.corpus.encodings import codec_of, decoded, guess, html_charset
from t5x_lite.corpus.opening import Problems
from t5x_lite.corpus.readers import Reader

TEXTS = {
    "cp1252": "Le vieux moulin est près de la rivière, à l'entrée du village. Chaque été, des "
    "élèves y viennent voir comment on fabriquait la farine. Le café d'à côté est fermé.\n",
    "iso8859-2": "Stary młyn stoi nad rzeką, tuż przy wjeździe do wsi. Źródło wody wyschło w "
    "zeszłym "
    "roku, więc koło już się nie kręci. Gmina chce je jednak wkrótce naprawić.\n",
    "koi8-r": "Старая мельница стоит у реки, на самом краю деревни. Каждое лето сюда приезжают "
    "школьники, чтобы посмотреть, как раньше делали муку.\n",
    "iso8859-7": "Ο παλιός μύλος βρίσκεται κοντά στο ποτάμι, στην είσοδο του χωριού. Πέρυσι η πηγή "
    "στέρεψε και ο τροχός δεν γυρίζει πια.\n",
    "cp1256": "تقع الطاحونة القديمة قرب النهر عند مدخل القرية. جف النبع في السنة الماضية ولم تعد "
    "العجلة تدور.\n",
    "cp932": "古い水車は川のそば、村の入口にあります。去年"
    "は泉が涸れたので、水車はもう回っていません。\n",
    "euc_jp": "毎年の夏、生徒たちが昔の小麦粉の作り方を見に来"
    "ます。村の人々は早く直してほしいと思っています。\n",
    "iso2022_jp": "古い水車は川のそば、村の入口にあります。カフェも来月また開くそうです。\n",
    "gb18030": "古老的水车在河边，就在村子的入口。每年夏天，学生们来这里看过去的人怎样做面粉。\n",
    "big5": "古老的水車在河邊，就在村子的入口。每年夏天，學生們來這裡看過去的人怎樣做麵粉。\n",
    "cp949": "오래된 물레방아는 강가, 마을 입구에 있습니다"
    ". 작년에 샘이 말라서 더 이상 돌지 않습니다.\n",
    "utf-8": "Größe, čeština, עברית, 日本語: alles in einem Text, und alles soll bleiben.\n",
}
MARKED = ["utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"]  # and two without a mark


def lost(text, found):
    """Characters of the text that aren't read: all but its longest beginning and end."""

    def common(one, other):
        return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
                    min(len(one), len(other)))  # fmt: skip

    begin = common(text, found)
    return len(text) - begin - common(text[begin:][::-1], found[begin:][::-1])


@pytest.mark.parametrize("encoding", [*TEXTS, *MARKED])
def test_a_text_is_read_whole(encoding):
    text = TEXTS.get(encoding, TEXTS["cp932"]) * 6
    assert decoded(text.encode(encoding)) == text


@pytest.mark.parametrize("encoding", TEXTS)
@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_one_bad_byte_costs_its_character(encoding, where):
    text = TEXTS[encoding] * 6
    data = text.encode(encoding)
    at = int(where * len(data))
    for damaged in (data[:at] + b"\xff" + data[at:], data[:at] + b"\xff" + data[at + 1 :]):
        assert lost(text, decoded(damaged)) <= 4
        assert lost(text, decoded(damaged, encoding)) <= 4


@pytest.mark.parametrize("encoding", TEXTS)
def test_half_a_character_at_the_end_or_at_the_samples_edge_is_no_evidence(encoding):
    text = TEXTS[encoding] * 6
    assert lost(text, decoded(text.encode(encoding)[:-1])) <= 2
    for shift in ("", "a"):
        long = shift + TEXTS[encoding].strip() * 1200  # no line ends: the sample ends anywhere
        assert lost(long, decoded(long.encode(encoding))) == 0


def test_labels_are_browsers():
    assert codec_of("ISO-8859-1") == codec_of("latin1") == codec_of("ascii") == "cp1252"
    assert codec_of("gb2312") == codec_of("GBK") == "gb18030" and codec_of("x-sjis") == "cp932"
    assert codec_of("UTF8") == codec_of("utf-8") == "utf-8"
    for label in ("", None, "rot13", "base64", "idna", "no-such", "a\0b", "unicode_escape"):
        assert codec_of(label) is None
    assert decoded("größer".encode(), "iso-8859-1") == "größer"  # UTF-8 without a fault is UTF-8
    assert decoded("größer ist".encode("cp1252"), "utf-8").startswith("gr")


def test_the_charset_of_a_page_is_its_metas():
    for page, charset in (
        (b"<meta charset=koi8-r>", "koi8-r"),
        (b"<META Charset = 'koi8-r' >", "koi8-r"),
        (b'<meta http-equiv=Content-Type content="text/html; charset=koi8-r">', "koi8-r"),
        (b'<meta content="text/html; charset=koi8-r" http-equiv="content-type">', "koi8-r"),
        (b'<meta name=x content="charset=koi8-r">', None),
        (b"<script charset=koi8-r src=a></script>", None),
        (b"<!-- <meta charset=koi8-r> --><meta charset=cp1251>", "cp1251"),
        (b"<a title='<meta charset=koi8-r>'><meta charset=cp1251>", "cp1251"),
        (b"<p>charset=koi8-r</p>", None),
        (b"<meta charset=utf-16>", "utf-8"),
        (b"<meta charset=nothing><meta charset=cp1251>", "cp1251"),
        (b"<meta charset=cp1251 charset=koi8-r>", "cp1251"),
        (b"<?xml version='1.0' encoding='koi8-r'?><html>", "koi8-r"),
        (b"x" * 5000 + b"<meta charset=koi8-r>", None),
        (b"<meta charset='koi8-r", None),
    ):
        assert html_charset(page) == charset, page


def test_lines_of_a_file_have_one_encoding(tmp_path):
    """Many lines are too short to tell alone."""
    lines = [part.strip() for part in TEXTS["koi8-r"].replace(",", ".").split(".") if part.strip()]
    for encoding in ("koi8-r", "utf-16", "utf-8-sig"):
        path = tmp_path / "a.txt"
        path.write_bytes("\n".join(lines * 40).encode(encoding))
        problems = Problems()
        found = list(Reader(document="line").read(str(path), "a.txt", "s", problems))
        assert [d["text"] for d in found] == lines * 40 and not problems.counts
    late = "\n".join(["ascii only"] * 40_000 + lines * 40)
    path.write_bytes(late.encode("koi8-r"))
    found = list(Reader(document="line").read(str(path), "a.txt", "s", Problems()))
    assert [d["text"] for d in found][-len(lines) :] == lines


def test_a_guess_names_a_codec_for_anything():
    for data in (b"", b"\xff", b"\x80" * 99, bytes(range(256)) * 9, b"\x1b$B", b"\0" * 50, b"~{"):
        data.decode(guess(data), errors="replace")
        assert isinstance(decoded(data), str)
