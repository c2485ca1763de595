"""The share of a thought's words that are of the target language, against counts by hand."""

import time

import pytest

from r1jax.rewards.language import Words, count_words, language

# (target, thought, words counted by hand: English, Chinese, other). Chinese words are those of a dictionary: 首先/我们/需要.
# Not counted: numbers, code with its comments, LaTeX with its text, tags, addresses, variables, and names of programs.
ENGLISH = [
    ("en", "First, let me find the slope of the line. It is 3, so the equation is y = 3x + 2.", 15, 0, 0),
    ("en", "Wait, that can't be right. I should check the sign of the second term again.", 15, 0, 0),
    ("zh", "We need to count the pairs where the sum is even.", 11, 0, 0),
    ("en", "The café's owner paid naïvely; déjà vu, he said.", 9, 0, 0),
    ("zh", "No words are hidden in <b>bold</b> tags, see https://example.org/page for more.", 10, 0, 0),
]
CHINESE = [
    ("zh", "首先，我们需要求出这条直线的斜率。", 0, 9, 0),
    ("zh", "等等，这样不对，让我重新检查一下第二项的符号。", 0, 13, 0),
    ("en", "因为每个数都是偶数，所以它们的和也是偶数。", 0, 13, 0),
    ("zh", "設這個三角形的面積為未知數，然後列出方程式。", 0, 10, 0),
    ("zh", "用 Python 写一个函数，输入列表 nums，返回最大值 ans。", 0, 8, 0),
    ("zh", "设 x 和 y 满足 x + y = 10，那么 x 的最大值是 10。", 0, 7, 0),
    ("zh", "根据 DNA 和 GDP 的定义，这两个概念没有关系。", 0, 9, 0),
    ("zh", "使用 Dijkstra 算法和 BFS，时间复杂度是 O(n log n)。", 0, 6, 0),
    ("zh", "我们令 left 指向开头，right 指向结尾，mid 是中间位置。", 0, 9, 0),
]
MIXED = [
    ("zh", "首先 we need to 找到 the maximum value，然后 return it。", 8, 3, 0),
    ("en", "Let me think: 这个问题 is about 概率, so we use 贝叶斯 rule.", 9, 4, 0),
    ("zh", "我觉得 the answer 应该是 twelve，因为 three times four。", 6, 5, 0),
    (
        "en",
        "The triangle is isosceles, so the base angles are equal. 因此角度是四十度。 Now compute the remaining angle.",
        15, 5, 0,
    ),
    ("zh", "这道题 is not easy，但是可以用 induction 证明。", 4, 7, 0),
    ("en", "The answer is これは正しい I believe.", 5, 0, 3),
    ("en", "We know that это число простое, hence we stop.", 6, 0, 3),
    ("zh", "这个数是 простое число，所以没有因数。", 0, 6, 2),
    (
        "zh",
        "题目要求我们计算所有小于一百的素数之和。 Let me list the primes below one hundred and add them up.",
        12, 11, 0,
    ),
    ("en", "OK so 假设 n is odd。Then n+1 is even, 这就完成了证明.", 7, 6, 0),
    ("zh", "我们 solve 这个 equation，得到 answer 是五。", 3, 5, 0),
    ("en", "Tom pays $5 for lunch and $12 for dinner, 一共十七美元.", 7, 3, 0),
    ("zh", "<step>计算面积</step><step>compute the area now</step>", 4, 2, 0),
    (
        "zh",
        "题目给出一个长度为 n 的数组，要求找出两个不同的位置，使得它们的和等于给定的目标。"
        "最直接的做法是枚举所有的数对，但是这样太慢。"
        "Let us double check the time limit before we go on. 我们可以先排序，然后用两个指针从两端向中间移动。",
        11, 47, 0,
    ),
]  # fmt: skip
MATHEMATICS = [
    ("zh", "$x^2 + 2x + 1 = (x+1)^2$", 0, 0, 0),
    ("en", r"\[ \int_0^1 x^2 \, dx = \frac{1}{3} \]" + "\n" + r"\[ \sum_{k=1}^{n} k = \frac{n(n+1)}{2} \]", 0, 0, 0),
    ("zh", "12 * 7 = 84\n84 + 16 = 100\n100 / 4 = 25", 0, 0, 0),
    ("zh", "f(x) = ax + b, f(2) = 7, f(5) = 16, 3a = 9, a = 3, b = 1", 0, 0, 0),
    ("zh", r"\begin{align} a &= b + c \\ d &= \text{total cost} \end{align}", 0, 0, 0),
    ("en", r"Thus $\frac{a}{b} = \frac{3}{4}$, so $a = 3k$ and $b = 4k$ for some $k$.", 5, 0, 0),
    ("zh", r"因为 \(\sin^2\theta + \cos^2\theta = 1\)，所以 $\cos\theta = \frac{4}{5}$，即 \boxed{\frac{4}{5}}。", 0, 3, 0),
    ("zh", r"由 \frac{a}{b} = 2 得 a = 2b，于是 \sqrt{a} \leq 3。", 0, 3, 0),
]
CODE = [
    (
        "zh",
        "先写代码：\n```python\ndef solve(nums):\n    # return the largest value\n    return max(nums)\n```\n"
        "然后测试这个函数。",
        0, 7, 0,
    ),
    (
        "en",
        "Let us write it.\n```cpp\nint main() { int n; cin >> n; } // 读入整数\n```\nThis reads one integer.",
        8, 0, 0,
    ),
    ("zh", "变量 `max_sum` 记录目前的最大值，`cur` 是当前的和。", 0, 9, 0),
    ("zh", "循环里执行 cur = max(cur + x, x)，再更新 best = max(best, cur)。", 0, 5, 0),
    ("zh", "```python\nprint(1)\n```\nThis code prints one. 这段代码输出一。", 4, 5, 0),
    ("zh", "先看循环：\n```python\nfor i in range(10):\n    total += i", 0, 3, 0),
]  # fmt: skip
SAMPLES = [*ENGLISH, *CHINESE, *MIXED, *MATHEMATICS, *CODE]


@pytest.mark.parametrize("target, thought, en, zh, other", SAMPLES, ids=range(len(SAMPLES)))
def test_the_reward_is_within_a_tenth_of_counts_by_hand(target, thought, en, zh, other):
    total = en + zh + other
    expected = {"en": en, "zh": zh}[target] / total if total else 1.0
    score = language("", f"<think>{thought}</think>摘要 in another language", {}, target=target)
    assert abs(score.value - expected) < 0.1, score


def test_there_are_enough_samples():
    assert len(SAMPLES) >= 40


def test_the_thought_alone_counts_and_an_open_one_is_the_whole_turn():
    for turn, value in [
        ("<think>因为它是偶数</think> The answer is even.", 1.0),
        ("因为它是偶数</think> The answer is even.", 1.0),
        ("<think>The answer is even.</think> 因为它是偶数", 0.0),
        ("<think>The answer is even.", 0.0),
        ("<think>因为它</think><think>The answer is even</think> 因为", 1.875 / 5.875),
        ("<think></think> The answer is even.", 1.0),
        ("", 1.0),
    ]:
        assert language("", turn, {}, target="zh").value == pytest.approx(value), turn


def test_the_target_is_the_option_else_the_rows_else_the_prompts_else_the_thoughts():
    zh, en = "<think>因为它是偶数</think>", "<think>because it is even</think>"
    asked_zh = [{"role": "system", "content": "Answer in a helpful way and think first."}, {"role": "user", "content": "求和"}]
    for prompt, row, option, target in [
        ("Find the sum of all digits", {"target_language": "en"}, "zh", "zh"),
        ("Find the sum of all digits", {"target_language": "zh"}, None, "zh"),
        ("Find the sum of all digits", {"language": "zh"}, None, "en"),
        ("求所有数字之和", {}, None, "zh"),
        (asked_zh, {}, None, "zh"),
    ]:
        values = [language(prompt, turn, row, target=option).value for turn in (zh, en)]
        assert values == ([1.0, 0.0] if target == "zh" else [0.0, 1.0]), (prompt, row, option)
    for prompt in ("1 + 1 = ?", None, "$x$"):
        assert language(prompt, zh, {}).value == language(prompt, en, {}).value == 1.0
    with pytest.raises(ValueError, match="target_language.*'python'; it must be en or zh"):
        language("", zh, {"target_language": "python"})


def test_a_single_latin_word_is_a_name_in_chinese_and_a_word_in_english():
    assert count_words("然后 sketch 出来") == Words(0, 4 / 1.6, 0)  # the known limit: it is no common word
    assert count_words("然后 therefore 出来") == Words(1, 4 / 1.6, 0) == count_words("然后 Therefore 出来")
    assert count_words("先做 This **is** it 然后再做下一步").en == 3
    assert count_words("We know how to do it: sketch = 3").en == 7
    assert count_words("I see a dog") == Words(4, 0, 0) and count_words("a + I") == Words(0, 0, 0)


UNITS = [
    "\\[", "\\(x", "$x ", "$$ x", "\\begin{a}", "\\a{", "`", "``` ", "a(", "<a", "f.", "a_", "x-", "x'", "http://", "a1", "中a",
]  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
def test_hostile_text_takes_linear_time(unit):
    start = time.process_time()
    count_words(unit * (100_000 // len(unit)))
    assert time.process_time() - start < 1.5
