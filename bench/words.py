"""The words that texts of the load generator are made of."""

from random import Random

# Each word is one token of SmolLM2's vocabulary, with and without a space before it.
_VOCABULARY = """
    able above after air along always animal apple arm art away back bank bear before best between black
    blue boat book bottom boy bread bright brown building call camp care castle cause center chair
    chapter child circle class clear clock cloud cold come company cost country cover culture dark
    daughter deal design direct dog double dream drop early east effect eight empty energy enough every
    example face fall farm father field figure final fine first five floor flower follow foot forest
    forward free friend fruit game glass good great ground grow hair hand hard head heat help hill hold
    horse hour human ice inside job jump keep king lake language last law learn left level life line
    listen local look low main mark master matter measure memory method mile mind model money moon
    motion move name nature neck news noise nose number office old orange other oven page paper park
    party pattern perfect photo piece plain planet plate point port power press print process public
    push question quiet rain reach reason red rest rice ride ring road room rose round rule salt sand
    scale science sea season second seed sense series shape sharp shirt short sign single size skin
    sleep small snow soft song soup south special spring stage star state stay stick stone store story
    strong sugar sun sweet table talk task team test thing thought time title together tool top touch
    town trade travel trip trust under upper view voice wall warm watch wave week west white wide wind
    winter wise woman word world yard yellow zero
"""
WORDS = _VOCABULARY.split()


def words(n_tokens: int, rng: Random) -> str:
    """About `n_tokens` tokens of text. It is random from the first word, so no cache holds a prefix of it."""
    return " ".join(rng.choices(WORDS, k=max(n_tokens, 1)))
