"""The grammar of mentions: names of concepts, which word of a prompt belongs to ``<rex>``, and ``<rex:0.7>``."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from src.data.ranges import MOST

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
"""What a concept may be called: a prompt, a key of the configuration and a file name can all carry it."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DETERMINERS = _words("a an the this that one another each every any some no my your his her its our their whose")
"""Words whose token gives its place to V*. So does the ``'s`` of ``anna's <rex>``."""

_STRENGTH = re.compile(r"\d+(?:\.\d*)?|\.\d+")
_MENTION = re.compile(r"<([A-Za-z_](?:[^<>]*[^<>\s])?)>")
_WORD = re.compile(r"\w+(?:-\w+)*|['\u2019]s\b|[^\w\s]", re.IGNORECASE)
_OPENING = "\"'([{*\u201c\u2018"
_SUBJECTS = _words("it that this he she who what where here there let")
"""Words after which ``'s`` means "is" or "us"."""

_JOINTS = frozenset((",", "and", "or", "but", "yet"))
"""What may stand between two adjectives."""

_COMMON_ADJECTIVES = _words(
    """
    red green blue yellow orange purple pink brown black white grey gray golden silver dark light bright pale colorful
    big large huge giant small little tiny tall short long fat thin round old young new ancient modern vintage
    cute fluffy furry soft shiny dirty clean wet dry hot cold happy sad angry sleepy lazy funny friendly beautiful
    pretty lovely ugly cozy wild striped spotted dotted checkered wooden metal metallic plastic
    very really quite too extremely slightly rather
    """
)
"""Words that are adjectives, or adverbs before one, in every prompt. All other adjectives may follow a determiner, but
no joint may stand beside them: ``a car and old <rex>`` is not ``a big and old <rex>``."""

_PLURAL = _words(
    """
    two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred thousand dozen
    these those several many few multiple numerous various
    """
)
"""Words before more than one subject."""

_ENDS = _words(
    """
    and or but nor so yet while as than if when because although though until that
    about above across after against along alongside among around at before behind below beneath beside besides between
    beyond by during except for from in inside into like near of off on onto out outside over past per since through
    throughout to toward towards under underneath up upon versus via vs with within without
    i you he she it we they me him us them who whom which there here then not both either neither
    is are was were be been being am has have had having do does did can could will would shall should may might must
    wearing wears wore holding holds held riding rides rode carrying carries carried chasing chases chased
    eating eats ate drinking drinks drank watching watches watched hugging hugs hugged kissing kisses kissed
    pulling pulls pulled pushing pushes pushed following follows followed feeding feeds fed driving drives drove
    petting pets seeing sees saw meeting meets met loves loved likes liked wants wanted shows showed showing
    says said gets got getting gives gave giving takes took taking makes made making using uses touches touching
    featuring features including includes containing contains showcasing depicting depicts
    photo photograph picture pic image painting drawing sketch portrait render rendering illustration closeup close-up
    man men woman women boy boys girl girls person people child children kid kids guy lady
    """
)
"""Words that are no adjectives: conjunctions, prepositions, pronouns, auxiliaries, verbs, and nouns of pictures and
people. A determiner before one of them belongs to something else."""

Characters = tuple[int, int]


@dataclass(frozen=True)
class Mention:
    """Where a concept stands in the plain prompt, in characters, and how strongly it is meant.

    ``article`` is the word whose token gives its place to V*; ``noun`` is the class noun. Adjectives may stand between.
    ``strength`` is 0 for the plain noun, 1 for the concept, at most ``MOST``.
    """

    name: str
    article: Characters
    noun: Characters
    strength: float = 1.0


@dataclass(frozen=True)
class MarkedPrompt:
    """A prompt in which class nouns stand for concepts, and the places of these concepts."""

    plain: str
    mentions: tuple[Mention, ...]


def check_name(name: str, key: str) -> None:
    """Make sure that prompts, the command line and file names can carry the name of a concept.

    Args:
        name: The name.
        key: Setting that gave it, for the error.

    Raises:
        ValueError: If they cannot.
    """
    if not NAME.fullmatch(name):
        near = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_-").lstrip("0123456789-")
        advice = f", such as {near}" if near else ", such as rex"
        raise ValueError(
            f"{key} is {shown(name)}, which no prompt can name; give letters, digits, _ and -, a letter first{advice}"
        )


def mention_of(name: str, strength: float = 1.0) -> str:
    """Write the mention of a concept: ``<rex>``, or ``<rex:0.7>`` for a strength other than 1."""
    return f"<{name}>" if strength == 1 else f"<{name}:{strength:g}>"


def mentioned(prompt: str) -> list[str]:
    """List the names that a prompt mentions, in its order, each once; whether they are known is not asked."""
    return list(dict.fromkeys(match.group(1).partition(":")[0].rstrip() for match in _MENTION.finditer(prompt)))


def parse_prompt(prompt: str, class_nouns: Mapping[str, str]) -> MarkedPrompt:
    """Replace every ``<name>`` by its class noun, and record its place.

    V* takes the place of the determiner of a mention: an article, a possessive, a demonstrative or the like, with
    nothing but adjectives between. A determiner serves one mention. Where there is none, "a" is inserted. White space
    around the prompt is dropped, as every pipeline does.

    Args:
        prompt: Text with any number of mentions, repeated or of equal nouns.
        class_nouns: Name of a concept to its class noun.

    Raises:
        ValueError: If a mention names an unknown concept, is glued to a word, stands for several subjects, or has a
            strength that is no number from 0 to ``MOST``.
    """
    prompt = prompt.strip()
    plain, mentions, at = "", [], 0
    for match in _MENTION.finditer(prompt):
        name, colon, said = (part.strip() for part in match.group(1).partition(":"))
        if name not in class_nouns:
            raise ValueError(_unknown(match.group(1), prompt, class_nouns))
        _refuse_glued(prompt, match)
        strength = _strength(match.group(), name, said) if colon else 1.0
        since_last = prompt[at : match.start()]
        determiner = _determiner(since_last, f"<{name}>")
        if determiner is None:
            plain += since_last
            article = (len(plain), len(plain) + 1)
            plain += "a "
        else:
            article = (len(plain) + determiner[0], len(plain) + determiner[1])
            plain += since_last
        noun = (len(plain), len(plain) + len(class_nouns[name]))
        plain += class_nouns[name]
        mentions.append(Mention(name, article, noun, strength))
        at = match.end()
    return MarkedPrompt(plain + prompt[at:], tuple(mentions))


def shown(text: str, limit: int = 80) -> str:
    """Quote a text for a message, its middle left out where it is longer than ``limit`` characters."""
    half = (limit - 5) // 2
    return repr(text if len(text) <= limit else f"{text[:half]} ... {text[-half:]}")


def _determiner(before: str, mention: str) -> Characters | None:
    """Find the determiner of a mention in the text between the mention before and this one."""
    between: list[str] = []
    words = list(_WORD.finditer(before.rstrip(_OPENING)))
    for place in range(len(words) - 1, -1, -1):
        word = words[place].group().lower()
        if word[0] in "'\u2019":
            owner = words[place - 1].group().lower() if place else ""
            return words[place].span() if owner not in _SUBJECTS and _are_adjectives(between) else None
        if word in DETERMINERS:
            return words[place].span() if _are_adjectives(between) else None
        if word in _PLURAL or word.isdecimal():
            if not _are_adjectives(between):
                return None
            raise ValueError(
                f"{word!r} stands before {mention}, which is one subject; write 'a {mention} and a {mention}' for two"
            )
        if word not in _JOINTS and (word in _ENDS or not re.match(r"\w", word)):
            return None
        between.insert(0, word)
    return None


def _are_adjectives(words: Sequence[str]) -> bool:
    """Tell whether the words between a determiner and a mention can all be adjectives of it."""
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        if word in _JOINTS and not {before, after} <= _COMMON_ADJECTIVES:
            return False
        # After what may be a noun, "walking" and "named" are verbs.
        may_be_verb = word.endswith(("ing", "ed")) and word not in _COMMON_ADJECTIVES
        if may_be_verb and before and before not in _COMMON_ADJECTIVES | _JOINTS:
            return False
    return sum(word not in _JOINTS for word in words) <= 4


def _refuse_glued(prompt: str, match: re.Match[str]) -> None:
    """Refuse a mention that is part of a longer word: its noun would be read as another word."""
    mention = match.group()
    word_before = re.search(r"\w[-'\u2019]?$|>$", prompt[: match.start()])
    letters = re.match(r"\w+", prompt[match.end() :])
    if letters and letters.group().lower() in ("s", "es"):
        raise ValueError(
            f"{mention}{letters.group()} is a plural, but {mention} is one subject; "
            f"write 'a {mention} and a {mention}' for two of it, or {mention}'s for what it has"
        )
    if letters:
        raise ValueError(f"{mention} is glued to {shown(letters.group())}; write a space after it")
    if word_before:
        glued = re.split(r"\s", prompt[: match.start()])[-1]
        raise ValueError(f"{mention} is glued to {shown(glued)}; write a space before it")


def _strength(written: str, name: str, said: str) -> float:
    if not _STRENGTH.fullmatch(said) or not 0 <= float(said) <= MOST:
        raise ValueError(
            f"{shown(written)} has a strength of {said or 'nothing'}; give a number from 0, the plain noun, to {MOST}: "
            f"<{name}:0.7>, or <{name}> for 1"
        )
    return float(said)


def _unknown(written: str, prompt: str, class_nouns: Mapping[str, str]) -> str:
    name, _, rest = written.partition(":")
    if name == "lora" and rest:
        file, _, scale = rest.partition(":")
        return (
            f"<{written}> is how other programs name a LoRA; here it is a setting: "
            f"backbone.lora=[{{path:{file}.safetensors,scale:{scale or 1}}}]"
        )
    close = difflib.get_close_matches(name, class_nouns, n=1)
    if close:
        return f"prompt {shown(prompt)} names <{name}>, which is no concept; did you mean <{close[0]}>?"
    known = ", ".join(f"<{known}>" for known in class_nouns) or "none"
    advice = f"; add bank.{name}=PATH" if NAME.fullmatch(name) else ""
    return f"prompt {shown(prompt)} names <{shown(name, 40)[1:-1]}>, but the concepts given are: {known}{advice}"
