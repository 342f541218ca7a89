"""Which language a text is in: py3langid, whose model is in its package (97 languages, no network).

Its probabilities are surer than they should be; thresholds of fastText's lid.176 don't carry over.
"""

import dataclasses
import functools
import re

from t5x_lite.corpus.code_languages import LANGUAGES, is_code
from t5x_lite.corpus.steps import Document, Step, rule

# ISO 639-1 codes with their other spellings: 639-2 (both), 639-3 of the usual member of a
# macrolanguage, and codes that were replaced.
_SPELLINGS = (
    "aa=aar ab=abk ae=ave af=afr ak=aka am=amh an=arg ar=ara,arb as=asm av=ava ay=aym,ayr "
    "az=aze,azj ba=bak be=bel bg=bul bh=bih bi=bis bm=bam bn=ben bo=bod,tib br=bre bs=bos "
    "ca=cat ce=che ch=cha co=cos cr=cre cs=ces,cze cu=chu cv=chv cy=cym,wel da=dan de=deu,ger "
    "dv=div dz=dzo ee=ewe el=ell,gre en=eng eo=epo es=spa et=est,ekk eu=eus,baq fa=fas,per,pes "
    "ff=ful,fuv fi=fin fj=fij fo=fao fr=fra,fre fy=fry ga=gle gd=gla gl=glg gn=grn gu=guj "
    "gv=glv ha=hau he=heb,iw hi=hin ho=hmo hr=hrv ht=hat hu=hun hy=hye,arm hz=her ia=ina "
    "id=ind,in ie=ile ig=ibo ii=iii ik=ipk io=ido is=isl,ice it=ita iu=iku ja=jpn jv=jav,jw "
    "ka=kat,geo kg=kon ki=kik kj=kua kk=kaz kl=kal km=khm kn=kan ko=kor kr=kau ks=kas "
    "ku=kur,kmr kv=kom kw=cor ky=kir la=lat lb=ltz lg=lug li=lim ln=lin lo=lao lt=lit lu=lub "
    "lv=lav,lvs mg=mlg,plt mh=mah mi=mri,mao mk=mkd,mac ml=mal mn=mon,khk mr=mar ms=msa,may,zsm "
    "mt=mlt my=mya,bur na=nau nb=nob nd=nde ne=nep,npi ng=ndo nl=nld,dut nn=nno no=nor nr=nbl "
    "nv=nav ny=nya oc=oci oj=oji om=orm,gaz or=ori,ory os=oss pa=pan pi=pli pl=pol ps=pus,pbt "
    "pt=por qu=que,quy rm=roh rn=run ro=ron,rum,mo ru=rus rw=kin sa=san sc=srd sd=snd se=sme "
    "sg=sag si=sin sk=slk,slo sl=slv sm=smo sn=sna so=som sq=sqi,alb,als sr=srp ss=ssw st=sot "
    "su=sun sv=swe sw=swa,swh ta=tam te=tel tg=tgk th=tha ti=tir tk=tuk tl=tgl,fil tn=tsn "
    "to=ton tr=tur ts=tso tt=tat tw=twi ty=tah ug=uig uk=ukr ur=urd uz=uzb,uzn ve=ven vi=vie "
    "vo=vol wa=wln wo=wol xh=xho yi=yid,ji,ydd yo=yor za=zha zh=zho,chi,cmn zu=zul "
)
_TWO_LETTERS = {
    other: code
    for code, _, others in (pair.partition("=") for pair in _SPELLINGS.split())
    for other in others.split(",")
}
_NAMES = {
    "arabic": "ar", "bengali": "bn", "chinese": "zh", "czech": "cs", "danish": "da", "dutch": "nl",
    "english": "en", "finnish": "fi", "french": "fr", "german": "de", "greek": "el",
    "hebrew": "he", "hindi": "hi", "hungarian": "hu", "indonesian": "id", "italian": "it",
    "japanese": "ja", "korean": "ko", "norwegian": "no", "persian": "fa", "polish": "pl",
    "portuguese": "pt", "romanian": "ro", "russian": "ru", "spanish": "es", "swahili": "sw",
    "swedish": "sv", "thai": "th", "turkish": "tr", "ukrainian": "uk", "urdu": "ur",
    "vietnamese": "vi",
}  # fmt: skip


def tag(spelling: str) -> str:
    """The language of a tag in any spelling, by BCP 47: en, EN, eng, en-US, eng_Latn are all "en".

    Two letters where ISO 639-1 has the language; "" for what is undetermined.
    """
    first = re.split(r"[-_.@]", spelling.strip().lower(), maxsplit=1)[0]
    first = _NAMES.get(first, first)
    return (
        "" if first in ("und", "unk", "unknown", "mul", "zxx") else _TWO_LETTERS.get(first, first)
    )


@dataclasses.dataclass(frozen=True)
class Language(Step):
    """Sets `language` and its score, and drops what is in another language or in none surely.

    Documents that have a language already keep it, as its two-letter code. Source code passes,
    whatever natural languages are kept; languages may also name programming languages.

    languages: kept ones, in any spelling of BCP 47 or ISO 639; None keeps all.
    """

    SCORES = ("language",)
    SOURCE = "FineWeb: 0.65 of fastText's lid.176; ROOTS: 0.6 to 0.95 by language"

    languages: tuple[str, ...] | None = None
    min_score: float = rule(0.65, "uncertain", "probability, at least")
    sample: int = 4000  # characters looked at, from the middle

    def __call__(self, document: Document) -> str | None:
        code = is_code(document)
        if not code and document.get("language"):
            document["language"] = tag(document["language"])
        if document.get("language"):
            document["scores"].setdefault("language", 1.0)
        else:
            language, score = identify(document["text"], self.sample)
            document["language"], document["scores"]["language"] = language, score
        if self.languages is not None:
            wanted = _kept(tuple(self.languages))[code]
            if wanted and document["language"] not in wanted:
                return "Language/other"
        return "Language/uncertain" if document["scores"]["language"] < self.min_score else None


@functools.cache
def _kept(languages: tuple[str, ...]) -> tuple[frozenset[str], frozenset[str]]:
    """(natural languages, programming languages) of a list."""
    code = {name.lower() for name in languages} & set(LANGUAGES)
    natural = {tag(name) for name in languages if name.lower() not in code}
    return frozenset(natural or {""}), frozenset(code)


def identify(text: str, sample: int = 4000) -> tuple[str, float]:
    """(ISO 639-1 code, probability), from `sample` characters in the middle of the text."""
    begin = max(0, (len(text) - sample) // 2)
    label, score = _identifier().classify(text[begin : begin + sample])
    return str(label), float(score)


@functools.cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
