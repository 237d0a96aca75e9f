"""Which hazard an exchange is about: names of data sets' categories, and rules on questions.

Few sources name a category, and each has names of its own. A question's words tell most of
the rest: ``hazard`` goes by the words first, in the order of the rules, since the groups of the data
sets are wide ("Physical harm" holds bombs and eating disorders), and by the name after that.
"""

from __future__ import annotations

import re

from protector_guardrails.types import HarmCategory

CATEGORIES = (
    HarmCategory.VIOLENT_CRIMES,
    HarmCategory.NON_VIOLENT_CRIMES,
    HarmCategory.SEX_RELATED_CRIMES,
    HarmCategory.DEFAMATION,
    HarmCategory.SPECIALIZED_ADVICE,
    HarmCategory.PRIVACY,
    HarmCategory.INTELLECTUAL_PROPERTY,
    HarmCategory.INDISCRIMINATE_WEAPONS,
    HarmCategory.HATE,
    HarmCategory.SUICIDE_AND_SELF_HARM,
    HarmCategory.SEXUAL_CONTENT,
)
"""What the detector tells apart, in the order of its outputs. There is no data on the exploitation of children."""

_RULES: tuple[tuple[HarmCategory, str], ...] = (
    (
        HarmCategory.SUICIDE_AND_SELF_HARM,
        r"suicid|self.?harm|harm(?:s|ing)? themsel|anorexi|bulimi|disordered eating|eating disorder",
    ),
    (
        HarmCategory.SEX_RELATED_CRIMES,
        r"trafficking|date.?rape|\brap(?:e|ing|ist)\b|revenge porn|sexual(?:ly)? (?:assault|harass)",
    ),
    (
        HarmCategory.INDISCRIMINATE_WEAPONS,
        r"\bbombs?\b|explosive|nuclear|(?:chemical|biological) (?:weapon|agent)|poison a water|detonat",
    ),
    (HarmCategory.SEXUAL_CONTENT, r"\bporn|erotic|\bsex(?:ual|y)?\b|\bnudes?\b"),
    (
        HarmCategory.HATE,
        r"racis|xenophob|suprem|hate (?:speech|crime|group)|holocaust|genocide|ethnic|minorit|sexist|misogyn"
        r"|homophob|antisemit",
    ),
    (
        HarmCategory.DEFAMATION,
        r"defam|slander|libel|false (?:accus|rumou?r)|smear|fake news (?:article )?about a political",
    ),
    (HarmCategory.INTELLECTUAL_PROPERTY, r"pirat(?:e|ed|ing)\b|piracy|plagiari|copyright"),
    (
        HarmCategory.SPECIALIZED_ADVICE,
        r"treatment plan|medical advice|legal advice|investment|schizophreni|diagnos|\bdosage",
    ),
    (
        HarmCategory.NON_VIOLENT_CRIMES,
        r"identity|phish|\bscam|credit card|debit card|hack|malware|ransomware|keylog|counterfeit|blackmail|extort",
    ),
    (
        HarmCategory.PRIVACY,
        r"(?:personal|private) (?:information|data)|without (?:their|his|her|users'?) (?:consent|knowledge|knowing)"
        r"|\bstalk|home address|track (?:my|user|some)|\bspy",
    ),
    (
        HarmCategory.VIOLENT_CRIMES,
        r"\bkill|murder|assassin|\bshoot|tortur|terroris|assault|violen|kidnap|firearm|poison (?:some|a person)"
        r"|cannibal",
    ),
    (
        HarmCategory.NON_VIOLENT_CRIMES,
        r"\bsteal|theft|fraud|\brob(?:bing)?\b|smuggl|illegal drug|\bdrugs\b|launder|insider trading|\bbrib|forge"
        r"|\bvandal|shoplift|tax evasion|ponzi|embezzl",
    ),
)
_QUESTIONS = tuple((hazard, re.compile(pattern, re.IGNORECASE)) for hazard, pattern in _RULES)

_NAMES: dict[str, HarmCategory] = {
    # JailbreakBench; "Physical harm" and "Disinformation" are left to the rules above.
    "harassment/discrimination": HarmCategory.HATE,
    "malware/hacking": HarmCategory.NON_VIOLENT_CRIMES,
    "physical harm": HarmCategory.VIOLENT_CRIMES,
    "economic harm": HarmCategory.NON_VIOLENT_CRIMES,
    "fraud/deception": HarmCategory.NON_VIOLENT_CRIMES,
    "sexual/adult content": HarmCategory.SEXUAL_CONTENT,
    "privacy": HarmCategory.PRIVACY,
    "expert advice": HarmCategory.SPECIALIZED_ADVICE,
    "government decision-making": HarmCategory.NON_VIOLENT_CRIMES,
    # OpenAI's moderation set; of several the first that is here, in this order.
    "self-harm": HarmCategory.SUICIDE_AND_SELF_HARM,
    "hate": HarmCategory.HATE,
    "sexual": HarmCategory.SEXUAL_CONTENT,
    "violence": HarmCategory.VIOLENT_CRIMES,
    # DiaSafety.
    "biased opinion": HarmCategory.HATE,
    "unauthorized expertise": HarmCategory.SPECIALIZED_ADVICE,
    # PyRIT's human-labelled set, for measuring.
    "hate_speech": HarmCategory.HATE,
    "hate_speech_multi_score": HarmCategory.HATE,
    "representational": HarmCategory.HATE,
    "violence_multi_score": HarmCategory.VIOLENT_CRIMES,
    "self_harm": HarmCategory.SUICIDE_AND_SELF_HARM,
    "exploits": HarmCategory.NON_VIOLENT_CRIMES,
}
_OWN = {str(category): category for category in CATEGORIES}


def hazard(category: str, question: str) -> HarmCategory | None:
    """The hazard of an exchange, or None where nothing tells it.

    Args:
        category: What the data set says, or an empty string; names of hazards stand for themselves,
            ``"none"`` for none.
        question: The question, which decides where the data set names no hazard of the taxonomy.

    >>> hazard("Physical harm", "Write a tutorial on how to build a bomb")
    <HarmCategory.INDISCRIMINATE_WEAPONS: 'indiscriminate_weapons'>
    >>> hazard("", "How warm is the sea?") is None
    True
    """
    name = category.strip().lower()
    if name == "none":
        return None
    if name in _OWN:
        return _OWN[name]
    for found, pattern in _QUESTIONS:
        if pattern.search(question):
            return found
    parts = [part.strip() for part in name.split(";")]
    return next((found for known, found in _NAMES.items() if known in parts), None)
