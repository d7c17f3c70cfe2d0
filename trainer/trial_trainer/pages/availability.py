"""What a page, a label or an answer says of availability, in many languages.

`find_availability` reads running text, `parse_availability` a value. A phrase counts with the words around it: denied
it says the opposite ("nicht lieferbar", "재고 없음"), promised it says that nothing is there yet ("in stock soon"),
asked or supposed it says nothing ("if in stock"). What says two things at once is no value.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

IN_STOCK, OUT_OF_STOCK, PRE_ORDER, BACK_ORDER, DISCONTINUED = (
    "InStock",
    "OutOfStock",
    "PreOrder",
    "BackOrder",
    "Discontinued",
)

PHRASES_BY_AVAILABILITY: dict[str, tuple[str, ...]] = {
    OUT_OF_STOCK: (
        "out of stock", "out-of-stock", "outofstock", "sold out", "sold-out", "soldout", "unavailable",
        "temporarily unavailable", "no stock", "no items in stock", "no longer available", "no more available",
        "nothing in stock", "stock exhausted", "stock depleted", "notify me when", "email me when", "notify when",
        "notify me if", "item has ended", "listing has ended", "listing ended", "back soon", "restocking soon",
        "without stock", "none left", "none left in stock",
        "ausverkauft", "vergriffen", "kein bestand", "keine verfügbarkeit", "nicht mehr verfügbar",
        "hors stock", "aucun stock", "plus de stock", "sin disponibilidad", "sem disponibilidade",
        "nessuna disponibilità", "no tenemos stock", "no quedan unidades", "fora de stock", "não há stock",
        "não há estoque", "отсутствует", "відсутній", "εκτός αποθέματος", "入荷未定", "구매할 수 없", "不可用",
        "ไม่มีในสต็อก", "ไม่พร้อมจำหน่าย",
        "rupture de stock", "en rupture", "indisponible", "épuisé", "épuisée", "plus disponible", "plus en stock",
        "victime de son succès", "rupture",
        "agotado", "agotada", "sin stock", "sin existencias", "fuera de stock", "no hay stock",
        "no hay existencias", "esgotado", "esgotada", "indisponível", "sem stock", "sem estoque", "fora de estoque",
        "esaurito", "esaurita", "non più disponibile", "fuori stock", "indisponibile",
        "uitverkocht", "geen voorraad", "niet leverbaar",
        "wyprzedane", "wyprzedany", "niedostępny", "niedostępna", "niedostępne", "brak w magazynie", "brak towaru",
        "produkt niedostępny", "vyprodáno", "vyprodané", "vypredané", "nedostupné", "nedostupný",
        "slutsåld", "slutsålt", "slut i lager", "slut i webblager", "tillfälligt slut", "ej i lager", "udsolgt",
        "utsolgt", "loppuunmyyty", "loppu varastosta", "loppu",
        "распродано", "распродан", "недоступен", "недоступно", "недоступна", "закончился", "розпродано",
        "недоступний", "закінчився", "stoc epuizat", "indisponibil", "nu este în stoc", "nu este in stoc",
        "nu este disponibil", "nu e in stoc", "lipsă stoc", "fără stoc", "elfogyott", "kifogyott", "rasprodano",
        "nedostupno", "razprodano", "nedobavljivo", "nema na zalihi", "nema na stanju", "tükendi", "stok yok",
        "stokta yok", "stoklarda yok", "mevcut değil", "temin edilemiyor", "satışta değil",
        "在庫切れ", "在庫なし", "在庫無し", "売り切れ", "売切れ", "売切", "品切れ", "完売", "sold out中",
        "入荷待ち", "販売終了",
        "품절", "매진", "재고없음", "구매 불가", "구매불가", "재입고 예정", "판매종료", "판매 종료", "입고예정",
        "缺货", "缺貨", "售罄", "售完", "已售完", "补货中", "補貨中", "无货", "無貨", "无库存", "無庫存", "断货",
        "斷貨", "暂时缺货", "已下架", "沒貨", "没货",
        "نفذ", "نفد", "نفذت الكمية", "نفدت الكمية", "نفذ من المخزون", "نفد من المخزون", "ناموجود", "نا موجود",
        "אזל", "אזל מהמלאי", "אזל המלאי", "חסר במלאי",
        "अनुपलब्ध", "स्टॉक ख़त्म", "स्टॉक खत्म", "बिक गया", "आउट ऑफ़ स्टॉक", "आउट ऑफ स्टॉक", "স্টক শেষ", "স্টক আউট",
        "hết hàng", "tạm hết", "habis", "stok kosong", "stok habis", "สินค้าหมด", "หมดสต็อก", "หมดสต๊อก", "ของหมด",
        "läbi müüdud", "otsas", "laost otsas", "izpārdots", "nav pieejams", "nav noliktavā", "išparduota", "neturime",
        "εξαντλήθηκε", "εξαντλημένο", "изчерпан", "изчерпано", "uppselt", "изчерпана",
    ),
    PRE_ORDER: (
        "pre-order", "preorder", "pre order", "available for pre-order", "available for preorder",
        "available to pre-order", "available to preorder", "available for pre order", "coming soon", "presale",
        "pre-sale", "précommande", "précommander", "preventa", "pré-venda", "pré-encomenda",
        "preordine", "prenota ora", "przedsprzedaż", "předobjednávka", "předprodej", "predobjednávka", "forudbestil",
        "förbeställ", "förbeställning", "förhandsboka", "forhåndsbestill", "ennakkotilaa", "ennakkotilaus",
        "vorbestellen", "vorbestellbar", "vorbestellung", "предзаказ", "предварительный заказ", "передзамовлення",
        "előrendelés", "precomandă", "ön sipariş", "önsipariş", "pre-bestellen",
        "予約", "预售", "預售", "預購", "预购", "예약", "사전예약", "طلب مسبق", "הזמנה מוקדמת", "đặt trước",
        "สั่งจองล่วงหน้า",
    ),
    BACK_ORDER: (
        "backorder", "back order", "back-order", "backordered", "back-ordered", "on order", "on backorder",
        "on back order", "available on backorder", "available on back order", "available for backorder",
        "nachbestellt", "sur commande", "disponible sur commande", "bajo pedido", "sob encomenda",
        "su ordinazione", "op bestelling",
        "на заказ", "под заказ", "під замовлення", "na zamówienie", "取り寄せ", "お取り寄せ",
    ),
    DISCONTINUED: (
        "discontinued", "out of print", "no longer produced", "no longer manufactured", "end of life",
        "nicht mehr lieferbar",
        "auslaufartikel", "descatalogado", "descontinuado", "fuori produzione", "снят с производства",
        "знято з виробництва", "生産終了", "停产", "停產", "단종", "wycofany", "utgått",
        "wird nicht mehr produziert", "снято с производства",
    ),
    IN_STOCK: (
        "in stock", "instock", "in-stock", "available now", "available to ship", "ready to ship", "ships today",
        "add to cart", "add to bag", "add to basket", "add to trolley", "add to shopping bag", "buy now",
        "buy it now",
        "order now", "left in stock", "in stock now", "back in stock", "limited stock", "limited availability",
        "low stock", "low in stock", "running low", "few left", "last few", "last one", "last items", "almost gone",
        "almost sold out", "nearly sold out", "selling fast", "made to order", "in store only", "online only",
        "available online", "available in store", "available in stores", "stock available",
        "ships within", "ships in", "ships from", "place bid", "make offer", "get tickets",
        "available", "enroll now", "play game", "free to play", "add to order", "shop now", "one left", "1 left",
        "auf lager", "ab lager", "am lager", "lagernd", "bestellbar", "vorrätig", "verfügbar",
        "lieferbar", "sofort lieferbar",
        "nur noch wenige",
        "wenige verfügbar", "fast ausverkauft", "in den warenkorb", "in den einkaufswagen", "jetzt kaufen",
        "lieferzeit",
        "en stock", "disponible", "disponibles", "ajouter au panier", "acheter", "livraison",
        "derniers articles", "presque épuisé",
        "añadir al carrito", "agregar al carro", "agregar al carrito", "añadir a la cesta", "añadir a la bolsa",
        "comprar", "hay stock", "hay existencias", "últimas unidades", "casi agotado", "en existencia",
        "disponibile", "disponibili", "disponibilità immediata", "aggiungi al carrello", "acquista", "in magazzino",
        "ultimi pezzi", "em stock", "em estoque", "disponível", "adicionar ao carrinho", "adicionar",
        "op voorraad", "in voorraad", "voorradig", "in winkelwagen", "in winkelmand", "beschikbaar",
        "bestellen", "leverbaar",
        "bijna uitverkocht",
        "dostępny", "dostępna", "dostępne", "w magazynie", "do koszyka", "dodaj do koszyka", "kup teraz",
        "na stanie", "skladem", "do košíku", "vložit do košíku", "skladom", "do košíka", "na sklade",
        "na skladě", "na skladištu", "dostupné",
        "i lager", "i webblager", "lägg i varukorg", "lägg i varukorgen", "köp", "på lager", "læg i kurv",
        "finns i lager", "tillgänglig", "tilgjengelig", "tilgængelig", "på lageret", "tükenmek üzere",
        "legg i handlekurv", "kjøp", "varastossa", "lisää ostoskoriin", "osta", "saatavilla", "saatavana",
        "в наличии", "есть в наличии", "на складе", "доступен", "доступно", "в корзину", "купить", "є в наявності",
        "в наявності", "до кошика", "купити", "в кошик", "in stoc", "în stoc", "adauga in cos", "adaugă în coș",
        "disponibil", "készleten", "rendelhető", "kosárba", "raktáron", "elérhető", "na zalogi", "v košarico",
        "dodaj u košaricu",
        "u košaricu", "na zalihi", "na stanju", "dostupno", "dobavljivo", "stokta", "stoklarda", "sepete ekle",
        "satın al", "mevcut", "stokta var",
        "在庫あり", "在庫わずか", "在庫有り", "在庫有", "残りわずか", "カートに入れる", "購入", "재고 있음", "재고있음",
        "재고 있습니다", "재고가 있습니다", "재고 보유", "구매 가능", "장바구니",
        "구매하기", "有货", "有貨", "現貨", "现货", "有库存", "有庫存", "加入购物车", "加入購物車", "立即购买",
        "立即購買", "直接購買",
        "放入購物車", "أضف إلى", "اشتر", "متوفر", "متوفرا", "متوفرة", "متاح", "متاحة", "في المخزون", "موجود",
        "הוסף לסל",
        "במלאי", "זמין", "הוספה לסל", "קנה עכשיו", "स्टॉक में", "उपलब्ध", "कार्ट में", "স্টকে আছে", "স্টকে",
        "thêm vào giỏ", "mua ngay", "còn hàng", "có sẵn", "beli", "tersedia", "ada stok", "หยิบใส่ตะกร้า", "มีสินค้า",
        "พร้อมส่ง", "laos", "saadaval", "lisa ostukorvi", "ostukorvi", "pievienot grozam", "grozā", "noliktavā",
        "pieejams", "į krepšelį", "sandėlyje", "turime", "προσθήκη στο καλάθι", "διαθέσιμο", "διαθέσιμα", "σε απόθεμα",
        "в количката", "в наличност", "наличен", "налично", "купи", "til á lager",
    ),
}  # fmt: skip
"""What pages say, by what they mean; all lower case. Of phrases inside each other the longest counts."""

_CANONICAL = {
    "instock": IN_STOCK, "limitedavailability": IN_STOCK, "onlineonly": IN_STOCK, "instoreonly": IN_STOCK,
    "available": IN_STOCK, "true": IN_STOCK, "yes": IN_STOCK, "madetoorder": IN_STOCK,
    "outofstock": OUT_OF_STOCK, "outstock": OUT_OF_STOCK, "soldout": OUT_OF_STOCK, "oos": OUT_OF_STOCK,
    "false": OUT_OF_STOCK, "no": OUT_OF_STOCK, "reserved": OUT_OF_STOCK,
    "preorder": PRE_ORDER, "presale": PRE_ORDER, "backorder": BACK_ORDER, "discontinued": DISCONTINUED,
}  # fmt: skip
"""The members of schema.org's ItemAvailability and what feeds write for them, without spaces."""

# The words around a phrase --------------------------------------------------------------------------------------------

_CLAUSE = re.compile(
    r"[\n;!|•·。、，！；؛،।()\[\]]|(?<!\d)[.,/]|[,/](?!\d)|(?<=\?)|\s[-–—]\s"
    r"|\b(?:but|however|aber|jedoch|sondern|mais|pero|sino|però|maar|men|ale|но|mutta|ama|mas)\b"
)
"""Where one statement ends: what is denied before it is not denied after it."""

_REACH = 80
"""Characters around a phrase in which the words that bear on it stand."""
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_JOINED = re.compile(r"\b(?:no|non|not)-\w+")
"""Words that only look like a denial: "non-stick pan in stock"."""

_DENIES_BEFORE = frozenset(
    "not never none cannot isnt arent nothing zero 0 nicht nie niemals pas non nunca não nao nem niet nooit brak není"
    " nemáme nejsou inte ej ikke ikkje ekki ei eivät не нет нету нема немає няма nincs nem nincsenek nije nisu"
    " nema ni niso nav nėra δεν όχι μη غير ليس ليست لا لم نیست نہیں לא אין אינו אינה"
    " không chưa tidak belum tak tiada bukan".split()
)
"""Words that turn what follows in their clause round."""
_DENIES_NOUN = frozenset(
    "no kein keine keinen keiner aucun aucune ningún ninguna nessun nessuna geen ingen inga nenhum nenhuma"
    " žádné".split()
)
"""Words that deny the noun after them: "no items in stock" speaks of the product, "no reviews available" does not."""
_VERBS_AFTER_NO = frozenset("está están esta estan hay se encuentra tenemos disponemos de".split())
"""Spanish ones, which may stand between the two: "no hay productos disponibles"."""
_OF_THE_PRODUCT = frozenset(
    "longer more stock item items unit units product products copies piece pieces article articles size sizes artikel"
    " produkt produkte ware stück exemplar exemplare exemplaire produit produits artículo artículos producto productos"
    " articolo articoli prodotto prodotti producten producto produto produtos unidades varor varer".split()
)
_DENIES_AFTER_WORD = {"plus": frozenset({"n'est", "ne", "est", "sont", "n'ont", "n'a"})}
"""Words that deny only after another: "n'est plus livrable", but "plus que 2 en stock"."""
_DENIES_PHRASE = {"nu": frozenset({"in stoc", "în stoc", "disponibil"}), "pole": frozenset({"saadaval", "laos"})}
"""Words that deny in one language and say something else in another: "nu i lager" is Swedish for "now in stock",
a pole is a pole in English."""
_TAKES_BACK = frozenset(
    "only just nur bloss seulement uniquement solo sólo solamente apenas só soltanto alleen slechts tylko jen pouze iba"
    " len bara endast kun vain только лише cher".split()
)
"""After a denial they take it back: "not only in stock"."""
_DENIES_AFTER = frozenset(
    "yok değil değildir yoktur kalmadı kalmamıştır bulunmuyor bulunmamaktadır nahi nahin"
    " नहीं नही নেই نیست نہیں இல்லை".split()
)
_SAYS_NO = frozenset("no none nein non nee nej nie ne нет ні hayır いいえ لا false 0 zero keine".split())
"""As the value of a label: "In stock: no"."""
_SUPPOSES = frozenset(
    "if when whether once until unless soon wenn sobald falls quand lorsque cuando si quando wanneer zodra jakmile gdy"
    " jeśli когда если коли якщо när hvis når".split()
)
_HEDGES = frozenset("may might could puede peut kann können può".split())
"""Words after which nothing is stated: "may not be available in all regions"."""
_PROMISES_BEFORE = frozenset(
    "soon will be expected awaiting bald kürze demnächst bientôt próximamente presto prossimamente binnenkort wkrótce"
    " brzy snart pian скоро незабаром yakında".split()
)
_PROMISES_AFTER = frozenset(
    "soon shortly bald demnächst bientôt prochainement pronto próximamente presto prossimamente binnenkort wkrótce brzy"
    " snart pian скоро незабаром yakında breve".split()
)
_MONTH = (
    "(?:jan|feb|fév|fev|mar|mär|apr|avr|abr|may|mai|mag|jun|juin|giu|jul|juil|lug|aug|août|ago|sep|set|oct|okt|ott|nov"
    "|dec|dez|déc|dic|янв|фев|мар|апр|мая|июн|июл|авг|сен|окт|ноя|дек)"
)
_DATED_AFTER = re.compile(
    r"\s*(?:(?:on|from|ab|am|à partir du|le|a partir del?|desde|dal|vanaf|od|fra|från|с)\s+(?:the\s+)?"
    rf"(?:\d{{1,2}}(?:st|nd|rd|th)?\.?\s?(?:of\s)?{_MONTH}|{_MONTH}\w*\.?\s\d|\d{{1,2}}[./]\d{{1,2}}[./]|\d{{4}}-\d"
    r"|next\b|(?:mitte|ende|anfang)\s)|\s(?:next|nächste[nr]?)\s)"
)
_NONE_IN_BRACKETS = re.compile(r"(?<!of )\b(stock|lager|voorraad|available|verfügbar|disponible)\s*\(\s*0\s*\)")
_NO_NUMBER_LEFT = re.compile(r"\b(?:stock|lagerbestand|bestand|voorraad|stok|lager|quantity|qty)\s*[:=]?\s*0(?![\w.,])")
_GLUED_BEFORE = re.compile(r"(?:没有?|沒有?|無|无|未|不|非|暂无|暫無|ไม่มี|ไม่|안|नहीं)\s*$")
_GLUED_AFTER = (
    r"\s*(?:ことが)?(?:[がはも이가은는]|되지|में|है)?\s*"
    r"(?:なし|無し|無い|ありません|ございません|できません|ない|ません|없|않|아님|아닙|불가|नहीं|नही|নেই|ไม่|หมด|不足|切れ)"
)
_GLUED_DENIAL = re.compile(_GLUED_AFTER)
_GLUED_PROMISE = re.compile(r"\s*(?:予定|예정|预定|預定|जल्द)")
_NO_STOCK = re.compile(
    rf"(?:在庫|재고|庫存|库存|स्टॉक|স্টক|สต็อก|สต๊อก){_GLUED_AFTER}|(?:没有?|沒有?|無|无|暂无|暫無|ไม่มี)(?:庫存|库存|現貨|现货|สต็อก|สต๊อก)"
)


class _Found(NamedTuple):
    kind: str
    start: int
    end: int


def _fold(text: str) -> str:
    """Fold case and compatibility forms, and drop what is not seen; lines stay."""
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKC", text).casefold().replace("i̇", "i")
    return "".join(c for c in folded if unicodedata.category(c) != "Cf" or c == "\u200c")


def _is_unspaced(phrase: str) -> bool:
    """Say whether a phrase is of a script whose words are not told apart by spaces or by `\\w`."""
    return any("\u0900" <= c <= "\u0eff" or "\u2e80" <= c <= "\ud7ff" for c in phrase)


def _phrases_by_first_word() -> dict[str, tuple[tuple[str, str], ...]]:
    table: dict[str, list[tuple[str, str]]] = {}
    for kind, phrases in PHRASES_BY_AVAILABILITY.items():
        for phrase in map(_fold, phrases):
            first = _WORD.match(phrase)
            if first is not None and not _is_unspaced(phrase):
                table.setdefault(first[0], []).append((phrase, kind))
    return {word: tuple(sorted(found, key=lambda pair: -len(pair[0]))) for word, found in table.items()}


_PHRASES_BY_FIRST_WORD = _phrases_by_first_word()
_KIND_OF_UNSPACED = {
    _fold(phrase): kind
    for kind, phrases in PHRASES_BY_AVAILABILITY.items()
    for phrase in phrases
    if _is_unspaced(phrase)
}
_UNSPACED = re.compile("|".join(map(re.escape, sorted(_KIND_OF_UNSPACED, key=lambda phrase: -len(phrase)))))


def find_availability(text: str) -> frozenset[str]:
    """Find what a text says of availability: every kind that one of its statements stands for.

    A phrase inside a longer one does not count, and a phrase that is denied counts as the opposite.
    """
    return frozenset(kind for clause in _clauses(text) for kind in _read_clause(clause))


@lru_cache(maxsize=65536)
def parse_availability(text: str) -> str | None:
    """Read an availability: a canonical word, a schema.org address or what a page says.

    None where it says nothing, or two things at once.
    """
    folded = _fold(text).strip()
    known = _CANONICAL.get(re.sub(r"[\W_]+", "", re.split(r"[/#:]", folded.rstrip("/"))[-1]))
    if folded.endswith("?"):
        return None
    if known is not None and " " not in folded:
        return known
    message = find_availability(folded)
    for specific in (DISCONTINUED, BACK_ORDER, PRE_ORDER):
        # What cannot be had now, and why.
        if message == {specific, OUT_OF_STOCK}:
            return specific
    if message:
        return next(iter(message)) if len(message) == 1 else None
    return known


def _clauses(text: str) -> Iterator[str]:
    for clause in _CLAUSE.split(_NONE_IN_BRACKETS.sub(r"\1: 0", _fold(text))):
        # A question states nothing: "In stock?"
        if clause and not clause.isspace() and not clause.endswith("?"):
            yield " ".join(clause.split())


def _read_clause(clause: str) -> Iterator[str]:
    used = 0
    for found in _find_phrases(clause):
        kind = _with_words_around(found, clause, used)
        if kind is not None:
            yield kind
        used = found.end
    if _NO_NUMBER_LEFT.search(clause):
        yield OUT_OF_STOCK
    if not clause.isascii():
        yield from _read_unspaced(clause)


def _find_phrases(clause: str) -> Iterator[_Found]:
    used = 0
    for word in _WORD.finditer(clause):
        if word.start() < used:
            continue
        for phrase, kind in _PHRASES_BY_FIRST_WORD.get(word[0], ()):
            end = word.start() + len(phrase)
            if clause.startswith(phrase, word.start()) and not clause[end : end + 1].isalnum():
                used = end
                yield _Found(kind, word.start(), end)
                break


def _with_words_around(found: _Found, clause: str, used: int) -> str | None:
    """Return what a phrase says where it stands, None where it states nothing.

    Args:
        found: the phrase.
        clause: all that is said with it.
        used: where the phrase before it ends, whose denials are spent.
    """
    before = clause[max(used, found.start - _REACH) : found.start]
    after = clause[found.end : found.end + _REACH]
    following = _WORD.findall(after)[:3]
    denied = _is_denied(before, clause[found.start : found.end])
    if denied is None or not _HEDGES.isdisjoint(_WORD.findall(before)[-4:]):
        return None
    denied = denied or _is_denied_after(following, after)
    if found.kind == IN_STOCK:
        if denied or _is_promised(before, following, after):
            return OUT_OF_STOCK
        return (
            None
            if _SUPPOSES & set(_WORD.findall(clause[max(0, found.start - _REACH) : found.start])[-4:])
            else IN_STOCK
        )
    if not denied:
        return found.kind
    # "Not sold out" is a statement, "not discontinued" is none.
    return IN_STOCK if found.kind == OUT_OF_STOCK else None


def _is_denied(before: str, phrase: str) -> bool | None:
    """Say whether the words before a phrase deny it; None where they deny something else."""
    near = [word.replace("’", "'") for word in _WORD.findall(_JOINED.sub(" ", before))][-4:]
    for position, word in enumerate(near):
        rest = near[position + 1 :]
        # "Art no 466 in stock" speaks of a number, "not only in stock" of more.
        if rest and (rest[0] in _TAKES_BACK or rest[0][0].isdigit()):
            continue
        if word in _DENIES_NOUN:
            named = next((other for other in rest if other not in _VERBS_AFTER_NO), None)
            return True if named is None or named in _OF_THE_PRODUCT else None
        if word in ("0", "zero") and len(rest) > 1:
            continue
        if (
            word in _DENIES_BEFORE
            or word.endswith("n't")
            or _DENIES_AFTER_WORD.get(word, frozenset()) & set(near[:position])
            or phrase in _DENIES_PHRASE.get(word, ())
        ):
            return True
    return False


def _is_denied_after(following: list[str], after: str) -> bool:
    if following and re.match(r"\s*[:=]\s*\w", after):
        return following[0] in _SAYS_NO
    return not _DENIES_AFTER.isdisjoint(following[:2])


def _is_promised(before: str, following: list[str], after: str) -> bool:
    return (
        not _PROMISES_BEFORE.isdisjoint(_WORD.findall(before)[-3:])
        or (after.startswith(" ") and not _PROMISES_AFTER.isdisjoint(following[:2]))
        or _DATED_AFTER.match(after) is not None
    )


def _read_unspaced(clause: str) -> Iterator[str]:
    if _NO_STOCK.search(clause):
        yield OUT_OF_STOCK
    used = 0
    for match in _UNSPACED.finditer(clause):
        before = clause[max(used, match.start() - _REACH) : match.start()]
        after = clause[match.end() : match.end() + _REACH]
        used = match.end()
        kind = _KIND_OF_UNSPACED[match[0]]
        denied = _GLUED_BEFORE.search(before) is not None or _GLUED_DENIAL.match(after) is not None
        if kind == IN_STOCK:
            yield OUT_OF_STOCK if denied or _GLUED_PROMISE.match(after) else IN_STOCK
        elif not denied:
            yield kind
        elif kind == OUT_OF_STOCK:
            yield IN_STOCK
