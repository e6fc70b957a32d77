"""Texts written for this project: what calibrates int8, what proves an artifact, what the demo shows.

The three sets share no line, so that no artifact is proved on what it was fitted to.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from koe5_onnx import Contract, Tokenizer

CALIBRATION = (
    "예금자보호제도는 금융회사가 지급 불능 상태가 되더라도 일정 한도까지 예금을 돌려주는 장치이다.",
    "중앙은행이 기준금리를 올리면 대출 이자가 늘어나고 소비가 줄어드는 경향이 있다.",
    "전세 계약이 끝났는데 집주인이 보증금을 돌려주지 않으면 임차권등기명령을 신청할 수 있나요?",
    "근로자는 1주간 최대 몇 시간까지 연장근로를 할 수 있습니까?",
    "당뇨병 환자는 식후 두 시간 혈당을 꾸준히 기록하고 의사와 약의 용량을 상의해야 한다.",
    "고혈압 약을 먹다가 임의로 끊으면 뇌졸중 위험이 높아진다는 연구 결과가 있다.",
    "백신 접종 후 38도 이상의 열이 이틀 넘게 계속되면 진료를 받으시기 바랍니다.",
    "특허 출원 전에 논문으로 먼저 공개하면 신규성을 잃을 수 있으므로 주의가 필요하다.",
    "이 제품은 방수 기능이 있지만 바닷물에서는 사용하지 마십시오.",
    "배송이 늦어져서 주문을 취소하고 싶은데 환불은 며칠이나 걸리나요?",
    "오늘 서울은 흐리고 낮 최고 기온은 24도, 남부 지방에는 저녁부터 비가 내리겠습니다.",
    "세종대왕은 백성이 쉽게 글을 익힐 수 있도록 훈민정음을 만들었다.",
    "경주 불국사와 석굴암은 신라 불교 예술의 정수로 꼽힌다.",
    "반도체 공정에서 노광 장비의 파장이 짧아질수록 더 미세한 회로를 새길 수 있다.",
    "배터리 전해질을 고체로 바꾸면 화재 위험은 줄지만 계면 저항이 커지는 문제가 남는다.",
    "신경망의 층이 깊어지면 기울기가 사라지는 문제가 생기는데 잔차 연결이 이를 덜어 준다.",
    "파이썬에서 리스트와 튜플의 차이를 초보자도 알기 쉽게 설명해 줘.",
    "쿠버네티스에서 파드가 계속 재시작될 때 가장 먼저 무엇을 확인해야 하나요?",
    "SELECT name, COUNT(*) FROM orders GROUP BY name HAVING COUNT(*) > 10 ORDER BY 2 DESC;",
    "국회는 본회의를 열어 내년도 예산안을 재석 의원 과반수의 찬성으로 의결했다.",
    "선거권은 18세 이상의 국민에게 있으며 사전투표는 선거일 닷새 전부터 이틀간 실시한다.",
    "그는 낡은 가방에서 빛바랜 편지를 꺼내 한참 동안 말없이 들여다보았다.",
    "바람이 불면 갈대는 눕고, 바람이 그치면 갈대는 다시 일어난다.",
    "김치는 배추를 소금에 절인 뒤 고춧가루와 마늘, 젓갈로 버무려 발효시킨 음식이다.",
    "된장찌개를 끓일 때 두부는 마지막에 넣어야 모양이 부서지지 않는다.",
    "지하철 2호선은 순환선이라 어느 방향으로 타도 결국 같은 역에 돌아온다.",
    "부산에서 출발한 화물선이 태풍을 피해 제주 인근 해역에 닻을 내렸다.",
    "수학에서 소수는 1과 자기 자신만을 약수로 가지는 1보다 큰 자연수를 뜻한다.",
    "빛은 입자이면서 동시에 파동의 성질을 보인다.",
    "축구 국가대표팀은 후반 추가 시간에 터진 결승골로 2대 1 역전승을 거두었다.",
    "ㅋㅋㅋ 진짜 웃기다 어제 그 영상 봤어?? 완전 대박ㅠㅠ",
    "문의: 02-123-4567, 이메일 help@example.com, 평일 09:00~18:00 (점심 12:00~13:00)",
    "총 매출액은 전년 대비 12.7% 증가한 3조 4,508억 원, 영업이익은 2,190억 원이다.",
    "제3조(정의) 이 법에서 사용하는 용어의 뜻은 다음과 같다. 1. “정보주체”란 처리되는 정보의 주체를 말한다.",
    "Deposit insurance protects savers when a bank fails, up to a fixed amount for each person.",
    "What is the difference between a mutex and a semaphore?",
    "The patient was admitted with acute chest pain and discharged after three days of observation.",
    "def mean(values):\n    return sum(values) / len(values)  # fails on an empty list",
    "Heavy rain is expected along the coast tonight, with gusts of up to 70 km/h.",
    "She closed the book, looked out of the window, and said nothing for a long while.",
    "How do I cancel my subscription and get a refund for this month?",
    "Quarterly revenue rose 8.3 percent to $4.1 billion, beating most forecasts.",
    "The court held that the contract was void because one party had been misled.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    "GPU 메모리가 부족할 때는 batch size를 줄이거나 gradient checkpointing을 켜 보세요.",
    "RAG 시스템에서 chunk 크기를 512 token으로 잡으면 recall은 오르지만 latency도 함께 늘어난다.",
    "¿Dónde está la biblioteca más cercana? 一番近い図書館はどこですか。 最近的图书馆在哪里？",
    "Returns the number of items in the list, or zero if the list is empty.",
    "Raises an error when the file does not exist or cannot be opened for writing.",
    "If the optional argument is given, only the first match is replaced.",
    "This function is called once for each connection and must not block.",
    "The default is to read the whole response into memory before returning it.",
    "Create a new thread that waits until the queue is empty and then exits.",
    "A subclass may override this method to change how dates are parsed.",
    "class Stack: push(item) adds an item on top, pop() removes it and returns it.",
    "Deprecated since version 3.2, use the new interface instead.",
    "The encoding of the string defaults to UTF-8; invalid bytes are replaced.",
    "Set the timeout in seconds; a negative value means to wait for ever.",
    "Compute the variance of a sample of at least two numbers.",
    "Sort the keys, join them with commas, and write the result to standard output.",
    "Each header is a pair of name and value, separated by a colon.",
    "An iterator over (key, value) pairs in the order in which they were added.",
    "The socket is closed automatically at the end of the with statement.",
    "Unlike a list, a tuple cannot be changed after it has been created.",
    "The museum opens at ten, and admission is free on the first Sunday of the month.",
    "Add two eggs, a cup of flour and a pinch of salt, then stir until smooth.",
    "Scientists found traces of water beneath the surface of the red planet.",
    "The striker scored twice in the second half to send the team into the final.",
    "My flight was delayed by three hours and I missed the connection in Frankfurt.",
    "Unemployment fell slightly last month, though wages have barely kept up with prices.",
    "Take one tablet twice a day after meals and avoid alcohol during the treatment.",
    "The senator refused to comment on the investigation.",
    "A good night's sleep helps the brain to sort and store memories.",
    "Which battery lasts longer, and does the warranty cover water damage?",
    "The treaty was signed in 1648 and ended thirty years of war.",
    "Plants need nitrogen, phosphorus and potassium to grow well.",
    "He learned to play the violin at five and composed his first sonata at nine.",
    "The old lighthouse stands on a cliff above the harbour.",
    "Please find attached the invoice for the services delivered in October.",
    "The tenant shall keep the premises clean and return them in good condition.",
    "Users complain that the latest update drains the phone within hours.",
    "In linear algebra, a matrix is singular if its determinant is zero.",
    "The vaccine is stored at minus twenty degrees and shipped in insulated boxes.",
    "Nobody knew why the bridge had collapsed on such a calm day.",
    "Interest is compounded monthly, so the effective rate is a little higher.",
    "Volcanic ash forced the airport to close for most of the week.",
    "The recipe calls for fresh basil, but dried oregano will do.",
    "What time does the last train leave for the city centre?",
    "Her latest novel follows three generations of a family of fishermen.",
    "Whales are mammals: they breathe air and feed their young with milk.",
    "The committee will meet again on Thursday to vote on the proposal.",
    "Store passwords as salted hashes, never in plain text.",
    "The engine overheated because the coolant had leaked out overnight.",
    "Children under twelve travel free when accompanied by an adult.",
    "The painting was stolen in 1990 and has never been seen since.",
    "Rising sea levels threaten low-lying islands in the Pacific.",
    "Press and hold the button for five seconds until the light turns blue.",
    "부가가치세 신고는 분기마다 하며 기한을 넘기면 가산세가 붙는다.",
    "청약통장은 가입 기간이 길고 납입 횟수가 많을수록 당첨에 유리하다.",
    "채권 금리가 오르면 이미 발행된 채권의 가격은 떨어진다.",
    "상속을 포기하려면 상속 개시를 안 날부터 3개월 안에 가정법원에 신고해야 한다.",
    "계약서에 서명하기 전에 위약금 조항을 반드시 확인하세요.",
    "의료법은 의료인이 아닌 사람이 의료 행위를 하는 것을 금지한다.",
    "심폐소생술은 가슴 압박을 분당 100회에서 120회 속도로 한다.",
    "임신 초기에는 엽산을 꾸준히 섭취하는 것이 권장된다.",
    "무릎 관절염에는 체중을 줄이고 허벅지 근육을 기르는 운동이 도움이 된다.",
    "정부는 저출생 대책으로 육아휴직 급여를 올리고 어린이집을 늘리기로 했다.",
    "공공기관의 정보는 국민이 청구하면 공개하는 것이 원칙이다.",
    "재난지원금 신청은 온라인이나 가까운 주민센터에서 할 수 있습니다.",
    "이 상품은 단순 변심에 의한 반품이 가능하지만 왕복 배송비는 고객이 부담합니다.",
    "사이즈가 생각보다 작게 나와서 한 치수 크게 주문하는 걸 추천해요.",
    "화면이 갑자기 꺼지고 전원이 켜지지 않으면 서비스 센터로 문의해 주십시오.",
    "고구려의 광개토대왕은 영토를 만주까지 넓혔다.",
    "판소리는 소리꾼과 고수가 함께 이야기를 노래로 엮어 가는 예술이다.",
    "지구 온난화로 빙하가 녹으면서 북극곰의 서식지가 줄어들고 있다.",
    "양자 컴퓨터는 큐비트의 중첩과 얽힘을 이용해 계산한다.",
    "데이터베이스에서 인덱스를 만들면 조회는 빨라지지만 쓰기는 느려진다.",
    "비밀번호는 여덟 자 이상으로 하고 숫자와 특수문자를 섞어 주세요.",
    "그 영화는 줄거리는 단순하지만 배우들의 연기가 훌륭했다.",
    "할머니는 해마다 가을이면 마당에서 고추를 말리셨다.",
    "제주도로 가는 비행기 표가 성수기라서 두 배나 비싸다.",
    "회의는 오후 세 시로 미뤄졌으니 자료를 미리 읽어 오시기 바랍니다.",
    "강아지가 초콜릿을 먹었을 때는 바로 동물병원에 데려가야 한다.",
    "미적분학의 기본 정리는 미분과 적분이 서로 역연산임을 말해 준다.",
    "서울에서 부산까지 고속열차로 두 시간 반이면 갈 수 있다.",
    "민주주의는 다수의 뜻을 따르되 소수의 권리를 지키는 제도이다.",
    "커피 원두는 볶은 지 2주 안에 마시는 것이 향이 가장 좋다.",
    "!!! *** ### 123 456 789 *** !!!",
    "네",
    "",
)
"""Korean and English lines of many kinds; the empty one keeps an empty text in range."""

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


def verification_texts(tokenizer: Tokenizer, given: Sequence[str] = ()) -> list[str]:
    """Texts that an artifact is proved on: the lines above, both Hangul forms, and lengths at the limit.

    Args:
        tokenizer: Tells lengths; its limit gives texts of exactly limit - 2, limit - 1 and limit tokens,
            one cut from twice the limit, and some in between, down to about 64 tokens.
        given: More texts, of the user's own domain.
    """
    decomposed = [unicodedata.normalize("NFD", text) for text in VERIFICATION[:2]]
    limit = tokenizer.max_tokens
    short = [length for length in _SHORTER if length < limit // 8]
    lengths = (limit // 8, limit // 4, limit // 2, limit - 2, limit - 1, limit, 2 * limit, *short)
    long = [text_of_length(tokenizer, length, turn) for turn, length in enumerate(lengths)]
    return [*VERIFICATION, *decomposed, *long, *given]


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
