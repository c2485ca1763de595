"""Texts in which a language model says who it is: "I am ChatGPT", "as an AI developed by OpenAI", 我是通义千问.

A name alone says nothing, for a text may be about Qwen. It must stand behind "I am", "my name is", "you are" (system messages)
or 我是 and the like, with nothing between them but words such as "an AI assistant called". Names that people, animals and signs
of the zodiac have too need a capital, no article before them and no surname behind. A novel's "I am Claude, the baker" is found
all the same; "who built me? The people at OpenAI" is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


class Family(NamedTuple):
    names: tuple[str, ...]
    """Nothing else is called so."""
    shared: tuple[str, ...]
    """Others are called so too."""
    makers: tuple[str, ...]


FAMILIES = {
    "ChatGPT": Family(("ChatGPT", "Chat GPT", "GPT-3", "GPT-4", "GPT-5", "GPT3", "GPT4"), (), ("OpenAI", "Open AI")),
    "Claude": Family(("Claude AI",), ("Claude",), ("Anthropic",)),
    "Gemini": Family(("Google Bard", "PaLM 2"), ("Gemini", "Gemma", "Bard"), ("Google", "DeepMind", "谷歌")),
    "Llama": Family(("Llama-2", "Llama-3", "Llama 2", "Llama 3", "Meta AI"), ("Llama", "LLaMA"), ("Meta", "Facebook")),
    "Mistral": Family(("Mistral AI", "Mixtral", "Le Chat"), ("Mistral",), ("Mistral AI",)),
    "Copilot": Family(("Microsoft Copilot", "Bing Chat", "Phi-3", "Phi-4"), ("Copilot",), ("Microsoft", "微软")),
    "Grok": Family((), ("Grok",), ("xAI",)),
    "Qwen": Family(("Qwen", "Tongyi", "通义千问", "通义", "千问"), (), ("Alibaba", "阿里巴巴", "阿里云", "阿里")),
    "DeepSeek": Family(("DeepSeek", "Deep Seek", "深度求索"), (), ("DeepSeek", "深度求索", "High-Flyer", "幻方")),
    "Kimi": Family(("Kimi AI", "Kimi智能助手"), ("Kimi",), ("Moonshot AI", "月之暗面")),
    "ERNIE": Family(("ERNIE Bot", "文心一言", "文心大模型"), (), ("Baidu", "百度")),
    "GLM": Family(("ChatGLM", "GLM-4", "智谱清言"), (), ("Zhipu", "智谱", "Z.ai")),
    "Doubao": Family(("Doubao",), ("豆包",), ("ByteDance", "字节跳动", "字节")),
    "Hunyuan": Family(("Hunyuan", "混元"), (), ("Tencent", "腾讯")),
    "Spark": Family(("讯飞星火", "星火认知大模型"), (), ("iFlytek", "科大讯飞", "讯飞")),
    "Yi": Family(("Yi-34B", "Yi-Lightning"), (), ("01.AI", "零一万物")),
    "Baichuan": Family(("Baichuan", "百川大模型"), (), ("百川智能",)),
    "InternLM": Family(("InternLM", "书生·浦语", "书生浦语"), (), ("Shanghai AI Laboratory", "上海人工智能实验室")),
    "MiniMax": Family(("MiniMax",), (), ("MiniMax",)),
}
UNNAMED = re.compile(
    r"\bas an? (?:AI|artificial intelligence|(?:large )?language model)\b"
    r"|作为(?:一[个款种名])?(?:AI|人工智能|(?:大型?)?语言模型|大模型)",
    re.IGNORECASE,
)
"""A model that speaks of itself and gives no name."""

_GAP = r"[\s,，:：*_\"'“”‘’`「」《》()（）-]"
_BETWEEN = (
    r"(?:(?:an?|the|your|my|just|actually|indeed|AI|artificial|intelligence|large|language|virtual|conversational|helpful"
    r"|friendly|open[- ]source|assistant|model|chatbot|chat|bot|system|program|called|named|known|as|version|instance|of|based"
    rf"|powered|on|by|is){_GAP}+){{0,14}}"
)
_MADE = r"(?:made|built|created|developed|trained|designed|produced|provided|released|fine-?tuned)"
_MODEL = r"(?:AI|(?:language )?model|assistant|chatbot|bot)"
_I = rf"\b(?:I am|I[’']?m|my name is|you are|you[’']re|call me){_GAP}+"
_I_WAS = rf"\b(?:I am|I[’']?m|I was|I have been|you are|you were|as){_GAP}+"
_MAKER_OF = (
    rf"(?:{_MADE}(?:(?:,| and|,? or)? {_MADE})* by|{_MODEL},? (?:from|by))"
    rf"(?: the)?(?: (?:team|company|people|researchers|engineers))?(?: (?:at|of|from))? "
)
_NO_OTHER = r"(?![-’'.\w]* (?:user|fan|employee|engineer|developer|researcher|expert|subscriber|customer)s?\b)"
_NO_SURNAME = r"(?! (?!(?:AI|Opus|Sonnet|Haiku|Instant|Pro|Ultra|Flash|Nano|Advanced|Guard|Chat|Code|I)\b)(?-i:[A-Z]\w))"
_ZH_I = r"(?:我是|我叫|我的(?:中文|英文)?名字?[是叫为]|你是|您好，?我是)"
_ZH_I_WAS = r"(?:我是|我由|你是|作为|我的(?:开发者|创造者|研发团队)是)"
_ZH_NO_OTHER = r"(?!的(?:用户|粉丝|开发者|员工|使用者|研究|工程师|客户))"


class _Patterns(NamedTuple):
    cues: tuple[str, ...]
    """In small letters. A text that holds none of them need not be looked at."""
    pattern: re.Pattern


def named(text: str) -> dict[str, str]:
    """Family -> the words by which a model of it names itself in ``text``; empty if none does."""
    small = text.lower()
    found = {}
    for family, (cues, pattern) in _PATTERNS.items():
        if any(cue in small for cue in cues) and (match := pattern.search(text)):
            found[family] = match[0]
    return found


def _any(names: Iterable[str]) -> str:
    # the longest first, or GPT would end the match of GPT-4
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) or r"(?!)"


def _patterns(family: Family) -> _Patterns:
    everyone = _any(maker for f in FAMILIES.values() for maker in f.makers)
    between = (
        rf"(?:一[个款种位名]|名为|名叫|叫做?|称为|由|基于|来自|中国|人工智能|AI|超?大规模|大型?|语言|模型|智能|聊天|对话|机器人|助[手理]"
        rf"|[您你]的|的|公司|团队|集团|旗下|自主|独立|[研开]发|训练|推出|创[建造]|打造|提供|{everyone}|{_GAP}){{0,24}}?"
    )
    names, shared, makers = _any(family.names), _any(family.shared), _any(family.makers)
    ways = (
        rf"{_I}{_BETWEEN}(?:{names})(?![A-Za-z]{{2}}){_NO_OTHER}",
        rf"{_I}(?!an? |the ){_BETWEEN}(?<!\ban )(?<!\ba )(?<!\bthe )(?-i:{shared})(?!\w){_NO_SURNAME}{_NO_OTHER}",
        rf"{_I}{_BETWEEN}(?-i:{shared})(?:[- ]?\d[\w.]*)? {_MODEL}\b",
        rf"{_I}{_BETWEEN}(?:called|named|known as) (?-i:{shared})(?!\w)",
        rf"{_I_WAS}{_BETWEEN}{_MAKER_OF}(?-i:{makers})(?![A-Za-z])",
        rf"(?-i:\bAs) (?:{names}), I\b",
        rf"{_ZH_I}{between}(?:{names}|(?-i:{shared})(?![A-Za-z])){_ZH_NO_OTHER}",
        rf"{_ZH_I_WAS}{between}(?:{makers})(?:公司|团队|集团|旗下|自主|独立|\s)*(?:[研开]发|训练|打造|创造|推出|创建|设计|提供)",
    )
    cues = {name.lower() for names in family for name in names}
    return _Patterns(tuple(sorted(cues)), re.compile("|".join(ways), re.IGNORECASE))


_PATTERNS = {name: _patterns(family) for name, family in FAMILIES.items()}
