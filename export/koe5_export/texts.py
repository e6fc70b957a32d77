"""Texts written for this project: what quantisation is fitted to, what proves an artifact, the demo's.

The three sets share no line, so that no artifact is proved on what it was fitted to.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

from koe5_onnx import Contract, Tokenizer

CALIBRATION = (
    *files("koe5_export").joinpath("calibration.txt").read_text(encoding="utf-8").rstrip("\n").split("\n\n"),
    "",
)
"""Korean and English texts of many kinds; the empty one keeps an empty text in range."""

VERIFICATION = (
    "주택담보대출의 고정금리와 변동금리 가운데 어느 쪽이 유리한가?",
    "회사가 퇴직금을 제때 주지 않으면 어디에 신고해야 합니까?",
    "독감과 감기는 원인 바이러스가 다르며, 독감은 갑작스러운 고열과 근육통이 특징이다.",
    "소멸시효가 완성된 채권이라도 채무자가 스스로 갚으면 돌려받을 수 없다.",
    "개인정보 처리 방침은 홈페이지 첫 화면에서 쉽게 찾을 수 있어야 한다.",
    "한강은 태백산맥에서 시작하여 서울을 지나 서해로 흘러드는 강이다.",
    "이순신 장군은 명량에서 열세 척의 배로 백 척이 넘는 적선을 물리쳤다.",
    "태양광 패널의 효율은 온도가 올라가면 오히려 떨어진다.",
    "자율주행 자동차는 카메라와 라이다가 모은 정보를 합쳐 주변을 인식한다.",
    "해시 테이블에서 충돌이 나면 체이닝이나 개방 주소법으로 해결한다.",
    "여권을 분실했을 때 재발급까지 걸리는 기간과 필요한 서류를 알려 주세요.",
    "환율이 오르면 수출 기업은 웃고 수입 기업은 운다.",
    "비빔밥에 들어가는 나물은 따로 무쳐야 제맛이 난다.",
    "첫눈이 내리던 날 우리는 아무 약속도 없이 같은 골목에서 마주쳤다.",
    "제1심 판결에 불복하는 당사자는 판결서가 송달된 날부터 2주 이내에 항소할 수 있다.",
    "What documents do I need to renew a passport that I lost abroad?",
    "A hash table resolves collisions by chaining or by open addressing.",
    "Influenza starts suddenly with fever and muscle pain; a cold comes on slowly.",
    "The river rises in the mountains, crosses the capital and flows into the western sea.",
    "Exporters gain and importers lose when the currency weakens.",
    "Kubernetes 배포 중 ImagePullBackOff 오류가 나면 registry 인증 정보를 먼저 확인하세요.",
    "for (int i = 0; i < n; ++i) { total += weight[i] * value[i]; }",
    "2024-03-15 14:22:07 ERROR connection reset by peer (errno=104)",
    "매출 1,234억 원 / 영업이익 56.7억 원 / 순이익률 4.6 %",
    "안녕하세요 👋 반갑습니다 😊 🇰🇷 👩‍👩‍👧",
    "ㄱㄴㄷ ㅏㅑㅓㅕ ㅎㅎㅎ ㅠㅠ",
    "韓國의 漢字 表記와 ｆｕｌｌｗｉｄｔｈ 문자",
    "   띄어쓰기가     여러    번 \t 그리고\n줄바꿈도   있다   ",
    "예",
    "a",
    "",
    "<s> special </s> tokens <pad> typed by a user <unk>",
)

DEMO_QUERIES = (
    "한국의 수도는 어디인가요?",
    "감기에 걸렸을 때 어떻게 해야 하나요?",
    "How does a vaccine work?",
)
DEMO_PASSAGES = (
    "서울은 대한민국의 수도이며 가장 큰 도시이다.",
    "감기에 걸리면 충분히 쉬고 물을 자주 마시는 것이 좋다.",
    "A vaccine teaches the immune system to recognise a virus before an infection.",
    "이 노트북은 배터리가 오래가고 무게가 가볍다.",
)


_SHORTER = (64, 128, 256, 512)
"""Lengths in tokens that a limit of 8,192 would leave out: the usual ones."""


PROBES = (
    "",
    " ",
    "한글",
    unicodedata.normalize("NFD", "한글 각"),
    "ㅎㅏㄴ ㄱㅡㄹ ㅋㅋㅋ",
    "\u1112\u1161 \u11ab",  # jamo that make no syllable
    "\uffa1\uffc2 ｈａｌｆ　ｗｉｄｔｈ",
    "㈜한국 ㎏ ㎢ ½ ① Ⅳ",
    "韓國 \uf900\uf9a8 漢字",  # compatibility ideographs
    "e\u0301 é ñ n\u0303 İ ı ß ſ ﬁ",
    "ΑΒΓ Σίσυφος ς",
    "MIXED case MiXeD",
    "tab\there\nline\r\nline\u2028separator",
    "many     spaces   ",
    "no\u00a0break\u2003em\u3000ideographic",
    "zero\u200bwidth\u200djoiner\u2060word\ufeffmark",
    "soft\u00adhyphen",
    "\u0000null \u0007bell \u001b[0m",
    "👩\u200d👩\u200d👧 🇰🇷 👍🏽 ❤\ufe0f",
    "\U0001d54f\U0001d7d8 \U0001f170",
    "مرحبا בעולם",
    "สวัสดี नमस्ते",
    "日本語カタカナ ｶﾀｶﾅ が か\u3099",
    "中文，标点。",
    "Tiếng Việt",
    "<s> typed </s> <pad> <unk> <mask>",
    "query: passage: ",
    "\u2581already\u2581there",
    "1234567890 1,234.56 ０１２３ ٣",
    "https://example.com/a?b=c&d=%ED%95%9C#e",
    "user.name+tag@example.co.kr",
    "for (i=0;i<n;++i){a[i]*=2;}",
    "“quotes” ‘single’ «guillemets» 「괄호」 …",
    "a" * 60,
    "가" * 60,
    "!?" * 30,
    "\ud7ff\ue000\ufffd",
    "안녕하세요.안녕하세요!안녕하세요?",
)
"""Texts on which versions of a tokenizer may differ; their ids are kept in the manifest."""


class VerificationText(NamedTuple):
    """A text that an artifact is measured on."""

    text: str
    """Without prompt."""
    prompt_name: str | None
    """Name of its prompt; None for what happens if none is named, "" for nothing in front."""


def verification_texts(
    tokenizer: Tokenizer, contract: Contract, given: Sequence[str] = ()
) -> list[VerificationText]:
    """Texts that an artifact is measured on: the lines above, both Hangul forms, and lengths at the limit.

    Args:
        tokenizer: Tells lengths; its limit gives texts of exactly limit - 2, limit - 1 and limit tokens,
            one cut from twice the limit, and some in between, down to about 64 tokens.
        contract: Its prompts are used in turn, but for the texts of exact length.
        given: More texts, of the user's own domain.
    """
    decomposed = [unicodedata.normalize("NFD", text) for text in VERIFICATION[:2]]
    limit = tokenizer.max_tokens
    short = [length for length in _SHORTER if length < limit // 8]
    lengths = (limit // 8, limit // 4, limit // 2, limit - 2, limit - 1, limit, 2 * limit, *short)
    long = [text_of_length(tokenizer, length, turn) for turn, length in enumerate(lengths)]
    names = (None, *sorted(contract.prompts))
    short_texts = [*VERIFICATION, *decomposed, *given]
    return [
        *(VerificationText(text, names[turn % len(names)]) for turn, text in enumerate(short_texts)),
        *(VerificationText(text, "") for text in long),
    ]


def with_prompts(texts: Sequence[str], contract: Contract) -> list[str]:
    """The texts in turn as queries and as passages, their prompts in front."""
    prompts = (contract.prompts["query"], contract.prompts["passage"])
    return [prompts[turn % 2] + text for turn, text in enumerate(texts)]


def text_of_length(tokenizer: Tokenizer, tokens: int, turn: int = 0) -> str:
    """Running text with exactly `tokens` tokens where a cut allows it, else the nearest below.

    Args:
        tokenizer: Counts tokens.
        tokens: Wanted count, special tokens included.
        turn: Where in the lines the text begins.
    """
    lines = [text for text in VERIFICATION[turn:] + VERIFICATION[:turn] if len(text) > 20]
    text = " ".join(lines)
    while _count(tokenizer, text) < tokens:
        text += " " + text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _count(tokenizer, text[:middle]) <= tokens else (low, middle - 1)
    return text[:low]


def _count(tokenizer: Tokenizer, text: str) -> int:
    return int(tokenizer.encode([text]).full_lengths[0])
