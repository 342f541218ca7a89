"""How much of a text is read right: encodings x lengths x damage, by `corpus.encodings.decoded`.

  python benchmarks/corpus_encodings.py              # a table: % of characters in place, undeclared
  python benchmarks/corpus_encodings.py --declared   # the same with the encoding's name given

Right are the characters in the longest common blocks of the text and what was read (difflib on
short texts, from both ends on long ones). The lowest of several places of the damage is shown.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from t5x_lite.corpus.encodings import decoded

TEXTS = {
    "fr": "Le vieux moulin se trouve près de la rivière, à l'entrée du village. Chaque été, des "
    "élèves viennent y voir comment on fabriquait la farine. Le café d'à côté est fermé depuis "
    "l'année dernière, ce qui déplaît aux habitués. La mairie a décidé de le rouvrir bientôt.\n",
    "pl": "Stary młyn stoi nad rzeką, tuż przy wjeździe do wsi. Każdego lata przyjeżdżają tu "
    "uczniowie, żeby zobaczyć, jak dawniej robiono mąkę. Źródło wody wyschło w zeszłym roku, "
    "więc koło już się nie kręci. Gmina chce je jednak wkrótce naprawić.\n",
    "ru": "Старая мельница стоит у реки, на самом краю деревни. Каждое лето сюда приезжают "
    "школьники, чтобы посмотреть, как раньше делали муку. В прошлом году источник пересох, "
    "поэтому колесо больше не вращается. Жители надеются, что его скоро починят.\n",
    "el": "Ο παλιός μύλος βρίσκεται κοντά στο ποτάμι, στην είσοδο του χωριού. Κάθε καλοκαίρι "
    "έρχονται μαθητές για να δουν πώς έφτιαχναν παλιά το αλεύρι. Πέρυσι η πηγή στέρεψε και ο "
    "τροχός δεν γυρίζει πια. Οι κάτοικοι ελπίζουν ότι σύντομα θα επισκευαστεί.\n",
    "tr": "Eski değirmen köyün girişinde, ırmağın kıyısında duruyor. Her yaz öğrenciler unun "
    "eskiden nasıl yapıldığını görmek için buraya geliyor. Geçen yıl kaynak kuruduğu için çark "
    "artık dönmüyor. Köylüler onun yakında onarılacağını umuyor.\n",
    "he": "הטחנה הישנה עומדת ליד הנהר, בכניסה לכפר. בכל קיץ באים לכאן תלמידים כדי לראות איך הכינו "
    "פעם קמח. בשנה שעברה התייבש המעיין והגלגל כבר אינו מסתובב. התושבים מקווים שיתקנו אותו בקרוב.\n",
    "ar": "تقع الطاحونة القديمة قرب النهر عند مدخل القرية. في كل صيف يأتي التلاميذ إلى هنا ليروا "
    "كيف كان الدقيق يصنع في الماضي. جف النبع في السنة الماضية ولم تعد العجلة تدور. ويأمل السكان "
    "أن يتم إصلاحها قريبا.\n",
    "th": "โรงสีเก่าตั้งอยู่ริมแม่น้ำตรงทางเข้าหมู่บ้าน ทุกฤดูร้อนนักเรียนจะมาดูว่าสมัยก่อนทำแป้งกันอย่างไร "
    "ปีที่แล้วน้ำพุแห้งไป กังหันจึงไม่หมุนอีก ชาวบ้านหวังว่าจะซ่อมได้ในไม่ช้า\n",
    "ja": "古い水車は川のそば、村の入口にあります。毎年の夏、生徒たちが昔の小麦粉の作り方を見に"
    "来ます。去年は泉が涸れたので、水車はもう回っていません。村の人々は早く直してほしいと"
    "思っています。カフェも来月また開くそうです。\n",
    "zh": "古老的水车在河边，就在村子的入口。每年夏天，学生们来这里看过去的人怎样做面粉。去年泉水"
    "干了，所以水车不再转动。村里的人希望很快能把它修好。旁边的小店下个月也会重新开门。\n",
    "tw": "古老的水車在河邊，就在村子的入口。每年夏天，學生們來這裡看過去的人怎樣做麵粉。去年泉水"
    "乾了，所以水車不再轉動。村裡的人希望很快能把它修好。旁邊的小店下個月也會重新開門。\n",
    "ko": "오래된 물레방아는 강가, 마을 입구에 있습니다. 해마다 여름이면 학생들이 옛날에 밀가루를 "
    "어떻게 만들었는지 보러 옵니다. 작년에 샘이 말라서 물레방아는 더 이상 돌지 않습니다. 마을 "
    "사람들은 곧 고쳐지기를 바라고 있습니다.\n",
}  # fmt: skip
ENCODINGS = [
    ("utf-8", "fr"), ("utf-8", "ja"), ("cp1252", "fr"), ("iso8859-2", "pl"), ("cp1250", "pl"),
    ("cp1251", "ru"), ("koi8-r", "ru"), ("iso8859-7", "el"), ("cp1254", "tr"), ("cp1255", "he"),
    ("cp1256", "ar"), ("cp874", "th"), ("cp932", "ja"), ("euc_jp", "ja"), ("iso2022_jp", "ja"),
    ("gb18030", "zh"), ("big5", "tw"), ("cp949", "ko"), ("utf-16-le", "ja"), ("utf-16-be", "fr"),
    ("utf-16", "ru"), ("utf-32", "zh"),
]  # fmt: skip
LENGTHS = (60, 300, 3000, 100_000)  # characters


def damaged(data: bytes, kind: str, where: float) -> bytes:
    at = 8 + int(len(data[8:-8]) * where)
    if kind == "inserted":
        return data[:at] + b"\xff" + data[at:]
    if kind == "changed":
        return data[:at] + b"\xff" + data[at + 1 :]
    if kind == "cut":
        return data[:-1]
    return data


def right(text: str, found: str) -> float:
    """Share of characters that are read in their order: from both ends, up to what differs."""

    def common(a: str, b: str) -> int:
        low, high = 0, min(len(a), len(b))
        while low < high:  # the longest equal beginning
            middle = (low + high + 1) // 2
            low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
        return low

    begin = common(text, found)
    end = common(text[begin:][::-1], found[begin:][::-1])
    return (begin + end) / len(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--declared", action="store_true")
    declared = parser.parse_args().declared
    kinds = ("whole", "inserted", "changed", "cut")
    print(f"{'encoding':12s} {'':3s}", *(f"{n:>8,} {k:9s}"[:18] for n in LENGTHS for k in kinds))
    cells, seconds, size = [], 0.0, 0
    for encoding, language in ENCODINGS:
        row = []
        for length in LENGTHS:
            text = (TEXTS[language] * (length // len(TEXTS[language]) + 1))[:length]
            data = text.encode(encoding)
            for kind in kinds:
                worst = 1.0
                for where in (0.05, 0.31, 0.5, 0.77, 0.96) if kind in kinds[1:3] else (0.0,):
                    broken = damaged(data, kind, where)
                    begin = time.process_time()
                    found = decoded(broken, encoding if declared else None)
                    seconds, size = seconds + time.process_time() - begin, size + len(broken)
                    worst = min(worst, right(text, found))
                row.append(worst)
        cells += row
        print(f"{encoding:12s} {language:3s}", *(f"{100 * share:17.1f}" for share in row))
    many, most = (sum(share >= least for share in cells) for least in (0.99, 0.9))
    print(f"99 % or more right in {many} of {len(cells)} cells, 90 % in {most}")
    print(f"{size / seconds / 1e6:.0f} MB a processor second")


if __name__ == "__main__":
    main()
