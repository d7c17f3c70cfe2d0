"""What pages, labels and answers say of availability: in many languages, denied, promised, supposed and asked."""

import pytest

from trial_trainer.pages.answers import is_correct, is_valid, target
from trial_trainer.pages.availability import PHRASES_BY_AVAILABILITY, find_availability, parse_availability

IN, OUT, PRE, BACK, GONE, NOTHING = "InStock", "OutOfStock", "PreOrder", "BackOrder", "Discontinued", None

SAID = {
    # Canonical words, addresses and what feeds write.
    "InStock": IN, "in_stock": IN, "IN STOCK": IN, "In-Stock": IN, "http://schema.org/InStock": IN,
    "https://schema.org/InStock": IN, "https://schema.org/InStock/": IN, "schema:InStock": IN,
    "https://schema.org/ItemAvailability#InStock": IN, "LimitedAvailability": IN,
    "http://schema.org/LimitedAvailability": IN,
    "InStoreOnly": IN, "OnlineOnly": IN, "MadeToOrder": IN, "true": IN, "yes": IN, "limited availability": IN,
    "OutOfStock": OUT, "out_of_stock": OUT, "OOS": OUT, "OutStock": OUT, "https://schema.org/OutOfStock": OUT,
    "SoldOut": OUT, "http://schema.org/SoldOut": OUT, "Reserved": OUT, "false": OUT, "no": OUT,
    "PreOrder": PRE, "https://schema.org/PreOrder": PRE, "PreSale": PRE, "http://schema.org/PreSale": PRE,
    "preorder": PRE,
    "BackOrder": BACK, "https://schema.org/BackOrder": BACK, "Discontinued": GONE, "schema.org/Discontinued": GONE,
    # English.
    "In stock": IN, "Available": IN, "Add to cart": IN, "Add to Cart - $110": IN, "Only 3 left in stock": IN,
    "Only 3 left in stock - order soon.": IN, "10 in stock": IN, "More than 10 available": IN, "Few left": IN,
    "Last one": IN, "Low stock": IN, "Almost sold out": IN, "Back in stock": IN, "In stock again": IN,
    "Not only in stock": IN, "Not sold out": IN, "Never out of stock": IN, "Art no 466 in stock": IN,
    "Non-stick pan in stock": IN, "In stock: yes": IN, "Available from 12 sites": IN, "Made to order": IN,
    "Not in stock": OUT, "NOT IN STOCK": OUT, "Currently not in stock": OUT,
    "Sorry, this is not currently in stock.": OUT,
    "Isn't in stock": OUT, "This item isn’t available": OUT, "Not yet available": OUT, "No longer available": OUT,
    "No longer in stock": OUT, "No stock": OUT, "No items in stock": OUT, "0 in stock": OUT, "Stock: 0": OUT,
    "In stock: no": OUT, "Out of stock": OUT, "Sold out": OUT, "Unavailable": OUT, "Cannot be ordered, sold out": OUT,
    "In stock soon": OUT, "Back in stock soon": OUT, "Will be available on 12 May": OUT, "Will be back in stock": OUT,
    "Available soon": OUT, "Available again soon": OUT, "In stock from 12 May": OUT,
    "In stock on December 17, 2020": OUT,
    "Expected in stock next week": OUT, "Notify me when back in stock": OUT, "Email me when available": OUT,
    "Pre-order now": PRE, "Available for pre-order": PRE, "Coming soon": PRE, "Backordered": BACK,
    "Out of stock, available on backorder": BACK, "Discontinued. No longer available": GONE,
    "If in stock": NOTHING, "Is it in stock?": NOTHING, "In stock?": NOTHING, "Ships once in stock": NOTHING,
    "No reviews available": NOTHING, "May not be available in all regions": NOTHING, "Not sold": NOTHING,
    "Not available for pre-order": NOTHING, "Perhaps": NOTHING, "": NOTHING, "unbelievable": NOTHING,
    "In stock / out of stock": NOTHING, "Out of stock online, in stock at Leeds": NOTHING,
    "Not in stock online but available in store": NOTHING, "In stock or pre-order": NOTHING,
    "None in stock": OUT, "There are none in stock": OUT, "None left in stock": OUT, "In stock (0)": OUT,
    "Out of stock (0)": OUT, "Reviews (0) in stock": IN, "Out of print": GONE,
    # German.
    "Auf Lager": IN, "Sofort lieferbar": IN, "Wieder lieferbar": IN, "Nur noch 2 auf Lager": IN,
    "Fast ausverkauft": IN,
    "In den  Warenkorb": IN, "Nicht nur auf Lager": IN, "Nicht ausverkauft": IN,
    "Nicht lieferbar": OUT, "Nicht auf Lager": OUT, "Derzeit nicht verfügbar": OUT, "Nicht vorrätig": OUT,
    "Ausverkauft": OUT,
    "Vergriffen": OUT, "Keine Artikel auf Lager": OUT, "Lieferbar ab 12. Mai": OUT, "Demnächst lieferbar": OUT,
    "Vorbestellbar": PRE, "Nicht mehr lieferbar": GONE, "Keine Bewertungen verfügbar": NOTHING,
    "Lagernd": IN, "Nicht lagernd": OUT, "Bestellbar": IN, "Nicht bestellbar": OUT, "Bald wieder verfügbar": OUT,
    "In Kürze wieder lieferbar": OUT, "Nicht bloß auf Lager": IN,
    # French.
    "En stock": IN, "Plus que 2 en stock": IN, "Pas cher, en stock": IN, "Disponible": IN, "Presque épuisé": IN,
    "Pas en stock": OUT, "N'est pas disponible": OUT, "Ce produit n’est plus disponible": OUT, "Épuisé": OUT,
    "Non disponible": OUT, "Indisponible": OUT, "Rupture de stock": OUT, "Bientôt disponible": OUT,
    "Aucun article en stock": OUT,
    "Précommande": PRE, "Disponible sur commande": BACK, "Aucun avis disponible": NOTHING,
    "Bientôt de retour en stock": OUT, "Il n'y a plus de stock": OUT, "Hors stock": OUT, "Aucun stock": OUT,
    # Spanish, Portuguese, Italian, Romanian.
    "No está disponible": OUT, "Ya no está disponible": OUT, "No hay productos disponibles": OUT,
    "No hay opiniones disponibles": NOTHING,
    "Sin disponibilidad": OUT, "Não há estoque": OUT, "Nessuna disponibilità": OUT, "Mai sunt 2 produse în stoc": IN,
    "En existencia": IN, "No solo disponible": IN, "Casi agotado": IN, "Agotado": OUT, "No disponible": OUT,
    "Sin stock": OUT,
    "Próximamente disponible": OUT, "Preventa": PRE, "Em estoque": IN, "Disponível em 3 lojas": IN,
    "Não disponível": OUT,
    "Esgotado": OUT, "Indisponível": OUT, "Sem estoque": OUT, "Disponível em breve": OUT, "Disponibile": IN,
    "Non disponibile": OUT, "Esaurito": OUT, "Non più disponibile": OUT, "Presto disponibile": OUT, "În stoc": IN,
    "Nu este în stoc": OUT, "Nu mai este disponibil": OUT, "Stoc epuizat": OUT,
    # Dutch and the North.
    "Op voorraad": IN, "Niet op voorraad": OUT, "Niet leverbaar": OUT, "Uitverkocht": OUT, "Bijna uitverkocht": IN,
    "I lager": IN, "Nu i lager": IN, "Endast 3 i lager": IN, "Slut i lager": OUT, "Ej i lager": OUT,
    "Finns inte i lager": OUT,
    "Slutsåld": OUT, "På lager": IN, "Kun 3 på lager": IN, "Ikke på lager": OUT, "Udsolgt": OUT, "Utsolgt": OUT,
    "Varastossa": IN, "Ei varastossa": OUT, "Loppuunmyyty": OUT, "Laos": IN, "Ei ole laos": OUT,
    "In voorraad": IN, "Niet in voorraad": OUT, "Voorradig": IN, "Niet voorradig": OUT, "Tillgänglig": IN,
    "Ej tillgänglig": OUT, "Ikke lenger tilgjengelig": OUT, "Pole laos": OUT, "Fishing pole in stock": IN,
    # Slavic and Baltic.
    "Nemáme skladem": OUT, "Na skladě": IN, "Není na skladě": OUT, "Nema na skladištu": OUT, "Товар отсутствует": OUT,
    "W magazynie": IN, "Brak w magazynie": OUT, "Nie jest dostępny": OUT, "Niedostępny": OUT, "Skladem": IN,
    "100 Kč bez DPH skladem": IN, "Není skladem": OUT, "Vyprodáno": OUT, "Skladom": IN, "Nie je skladom": OUT,
    "В наличии": IN, "Нет в наличии": OUT, "Не в наличии": OUT, "Распродано": OUT, "Скоро в наличии": OUT,
    "Под заказ": BACK,
    "Є в наявності": IN, "Немає в наявності": OUT, "В наличност": IN, "Няма в наличност": OUT, "Na zalihi": IN,
    "Nije na zalihi": OUT, "Na zalogi": IN, "Ni na zalogi": OUT, "Noliktavā": IN, "Nav noliktavā": OUT,
    "Sandėlyje": IN,
    "Nėra sandėlyje": OUT,
    # Hungarian, Turkish, Greek.
    "Készleten": IN, "Nincs készleten": OUT, "Nem elérhető": OUT, "Elfogyott": OUT, "Stokta": IN, "Stokta var": IN,
    "Stokta yok": OUT, "Stokta değil": OUT, "TÜKENDİ": OUT, "Yakında stokta": OUT, "Διαθέσιμο": IN,
    "Μη διαθέσιμο": OUT,
    "Δεν είναι διαθέσιμο": OUT, "Εξαντλήθηκε": OUT,
    "Stokta kalmadı": OUT, "Stokta bulunmamaktadır": OUT, "Εκτός αποθέματος": OUT, "ليس متوفرا": OUT,
    # Arabic, Persian, Hebrew, Hindi, Bengali.
    "متوفر": IN, "غير متوفر": OUT, "غير متاح حاليا": OUT, "نفدت الكمية": OUT, "موجود": IN, "ناموجود": OUT,
    "موجود نیست": OUT, "במלאי": IN, "לא במלאי": OUT, "המוצר אינו במלאי": OUT, "אזל מהמלאי": OUT, "उपलब्ध": IN,
    "उपलब्ध नहीं है": OUT, "स्टॉक में है": IN, "स्टॉक में नहीं है": OUT, "अनुपलब्ध": OUT, "স্টকে আছে": IN,
    "স্টকে নেই": OUT,
    # Japanese, Korean, Chinese, Thai, Vietnamese, Indonesian.
    "カートに入れることができません": OUT, "품절되지 않음": IN, "구매할 수 없습니다": OUT, "在庫わずか": IN,
    "ไม่พร้อมจำหน่าย": OUT,
    "在庫あり": IN, "在庫なし": OUT, "在庫はありません": OUT, "在庫切れ": OUT, "売り切れ": OUT,
    "カートに入れる": IN, "予約": PRE,
    "재고 있음": IN, "재고 없음": OUT, "재고가 없습니다": OUT, "품절": OUT, "구매 가능": IN, "구매 불가": OUT,
    "有货": IN, "无货": OUT,
    "缺货": OUT, "現貨": IN, "没有现货": OUT, "没有库存": OUT, "暂时缺货": OUT, "加入購物車": IN, "มีสินค้า": IN,
    "ไม่มีสินค้า": OUT,
    "สินค้าหมด": OUT, "Còn hàng": IN, "Hết hàng": OUT, "Không có sẵn": OUT, "Tersedia": IN, "Tidak tersedia": OUT,
}  # fmt: skip
"""What is printed, and what it says of availability; None where it says nothing, or two things."""


@pytest.mark.parametrize(("text", "kind"), SAID.items(), ids=lambda part: str(part) or "nothing")
def test_what_is_printed_is_read_as_it_is_meant(text: str, kind: str | None) -> None:
    assert parse_availability(text) == kind
    assert is_valid("availability", text) == (kind is not None)
    assert is_correct("availability", text, [text]) == (kind is not None)
    assert all(is_correct("availability", text, [other]) == (kind == other) for other in (IN, OUT, PRE, BACK, GONE))


def test_markup_that_denies_is_trained_and_scored_as_a_denial() -> None:
    page = "# Kettle\nStatus: Not in stock\nPrice: $12"
    assert target("availability", "Not in stock", page) == OUT
    assert target("availability", "InStock", page) is None
    assert is_correct("availability", OUT, ["Not in stock"])
    assert not is_correct("availability", IN, ["Nicht lieferbar"])


def test_what_one_line_denies_is_not_denied_on_the_next() -> None:
    assert find_availability("Not dishwasher safe\nIn stock") == {IN}
    assert find_availability("No reviews yet. In stock") == {IN}


def test_a_page_may_say_several_things() -> None:
    assert find_availability("Add to cart\nOut of stock in Leeds\nPre-order") == {IN, OUT, PRE}


@pytest.mark.parametrize("kind", PHRASES_BY_AVAILABILITY)
def test_every_phrase_says_what_it_stands_for(kind: str) -> None:
    wrong = {phrase for phrase in PHRASES_BY_AVAILABILITY[kind] if kind not in find_availability(phrase)}
    assert wrong == set()


def test_a_long_line_of_phrases_is_read_in_time_that_grows_with_it() -> None:
    assert find_availability("not in stock " * 20_000) == {OUT}
