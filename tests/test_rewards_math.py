"""Which answers of mathematics are right, decided by hand; and hostile ones, which cost nobody else anything."""

import time

import pytest

from r1jax.bench import reward_throughput
from r1jax.config import Workers
from r1jax.rewards import Item, Pool
from r1jax.rewards.accuracy import accuracy

# (the row's answer, the model's answer, what accuracy gives); of each topic the right ones first.
MATH = {
    "integers": [
        ("42", "42", 1), ("7", "007", 1), ("5", "+5", 1), ("0", "-0", 1), ("1234", "1,234", 1), ("1234", "1{,}234", 1),
        ("1234", r"1\,234", 1), ("10000", "10 000", 1), ("1234567.5", "1,234,567.5", 1), ("1 234", "1234", 1), ("3", "3.", 1),
        ("42", "43", 0), ("42", "-42", 0), ("1234", "12,34", 0), ("1234", "(1,234)", 0), ("43", "4 3", 0), ("4", "4, 3", 0),
        ("4", "4 or 3", 0), ("10", "1e400", 0), ("4", "nan", 0), ("12", "twelve", 0),
        ("123456789012345678901", "123456789012345678902", 0), ("1 23", "123", 0), ("1 234 5", "12345", 0),
        ("4", "9^9^9^9", 0),
    ],
    "decimals": [
        ("5", "5.0", 1), ("0.5", ".5", 1), ("0.5", "0.50", 1), ("1/3", r"0.\overline{3}", 1),
        (r"\frac13", r"0.\overline{3}", 1), ("1/6", r"0.1\overline{6}", 1), ("1", r"0.\overline{9}", 1),
        ("3.14", "3.142", 0), ("0.1", "0,1", 0), ("2", "1.9999999999999999", 0), ("1/3", "0.333333", 0),
        ("0.333333", "1/3", 0), ("1/3", "0.333...", 0),
    ],
    "scientific notation": [
        ("1500", "1.5e3", 1), ("1500", "1.5E+3", 1), ("1500", r"1.5 \times 10^{3}", 1), ("1500", r"1.5\cdot10^3", 1),
        ("1000000", "10^{6}", 1), ("1000000", "10^6", 1), ("0.0015", r"1.5 \times 10^{-3}", 1), ("1500", "1.5 × 10³", 1),
        ("6.02e23", r"6.02 \times 10^{23}", 1),
        ("1500", r"1.5 \times 10^{4}", 0),
    ],
    "fractions": [
        ("1/2", "0.5", 1), ("0.5", r"\frac12", 1), ("1/2", r"\dfrac{1}{2}", 1), ("1/2", r"\tfrac{2}{4}", 1),
        ("1/2", r"\cfrac{1}{2}", 1), ("-0.5", r"-\frac{1}{2}", 1), ("-1/2", r"\frac{-1}{2}", 1), ("-1/2", r"\frac{1}{-2}", 1),
        ("1/2", "½", 1), ("1/2", "1⁄2", 1), ("1/2", "1/ 2", 1), ("1/0", "1/0", 1), (r"\frac{14}{3}", "14/3", 1),
        (r"\frac{\frac12}{3}", "1/6", 1), ("1/2", r"1 \over 2", 1),
        ("0", "1/0", 0), ("3/2", "2/3", 0), ("1/2", r"\frac{1}{3}", 0),
    ],
    "mixed numbers": [
        ("3/2", "1 1/2", 1), ("1.5", r"1\frac{1}{2}", 1), ("3.5", "3½", 1), ("-3/2", r"-1\frac{1}{2}", 1),
        ("-1.5", "-1 1/2", 1), ("3/2", r"1 \frac12", 1),
        ("3/2", "11/2", 0), ("11/2", "1 1/2", 0),
    ],
    "percent": [
        ("0.5", "50%", 1), ("1/2", r"50\%", 1), ("50%", "50 percent", 1), ("50%", r"50\text{ percent}", 1),
        ("50%", r"$50\%$", 1), ("12.5%", "1/8", 1), ("5 per cent", "5%", 1), ("30%", "0.3", 1), ("0.3", "30 %", 1),
        ("50%", "50", 0), ("50", "50%", 0), ("50%", "5%", 0), ("5", "5 per cent", 0), ("3", "3 %", 0), ("10", "10%", 0),
    ],
    "currency": [
        ("5", r"\$5", 1), ("-5", "-$5", 1), ("1234.5", "$1,234.50", 1), ("$5", "5 dollars", 1), ("5", "5 dollars", 1),
        ("€5", "5 euros", 1), ("$5", "$5.00", 1), ("$5", "5 USD", 1), ("$4.2 million", r"\$4,200,000", 1),
        ("£5", "5 pounds", 1), ("$5", "5$", 1), ("5", "5$", 1), ("5", r"\$5 per hour", 1), ("$5", "5.00 dollars", 1),
        (r"\$12{,}345.60", "12345.6", 1),
        ("$5", "€5", 0), ("$5", "5€", 0), ("$5", "5 cents", 0),
    ],
    "units": [
        ("10 cm", "10", 1), ("10", r"10\text{ cm}", 1), (r"4\text{ cm}^2", "4 cm^2", 1), ("12 apple", "12 apples", 1),
        (r"\sqrt{2}", r"\sqrt{2}\text{ cm}", 1), ("10 cm", "10 centimeters", 1), (r"10\,\mathrm{cm}", "10cm", 1),
        ("20 square feet", r"20\text{ ft}^2", 1), ("60 mph", "60 miles per hour", 1), ("5 m/s", r"5\text{ m/s}", 1),
        ("5", "5 m/s", 1), ("5 units", "5", 1), ("12", r"12\text{ inches}", 1), ("3", r"3 \text{ hours}", 1),
        ("10 kg", "10 kilograms", 1), ("5 C", "5", 1), ("5 miles", "5 mi", 1), ("5 lbs", "5 pounds", 1),
        ("5 h", "5 hours", 1), ("2 m", "2 meters", 1), ("3 s", "3 seconds", 1), ("9.8 m/s^2", r"9.8\text{ m/s}^2", 1),
        ("60 km/h", "60 kilometers per hour", 1), ("5 cubic meters", "5 m^3", 1), ("1/2 hour", "1/2", 1),
        ("412", "412 foo", 1), ("30", "30 students in class", 1), ("12", "12 pm", 1), ("5 KG", "5 kg", 1),
        ("10 cm", "10 m", 0), ("10m", "10cm", 0), ("10", "10m", 0), ("1 m", "100 cm", 0), ("1 hour", "60 minutes", 0),
        ("4 cm", "4 cm^2", 0), ("12 apples", "12 eggs", 0), (r"10\text{ m}", r"10\text{ cm}", 0),
        (r"\sqrt{2}\text{ m}", r"\sqrt{2}\text{ cm}", 0), ("4", "4x", 0), ("4", "4 x", 0), ("2", "2i", 0),
        ("3:30", "3:30 pm", 0), ("5 mW", "5 MW", 0), ("2 m", "2 min", 0), ("9.8 m/s^2", "9.8 m/s", 0),
        ("412", r"412\n\text{foo}", 0), ("5", "V", 0), ("5 V", "5 W", 0), ("12 h", "12 l", 0),
        ("30", "30 students in the class of 2020", 0), ("0.5", "1 half", 0), ("12 a.m.", "12 p.m.", 0), ("12 am", "12 pm", 0),
        ("10 m", "10 cm", 0),
    ],
    "degrees": [
        ("45", r"45^\circ", 1), (r"90^{\circ}", "90°", 1), ("45°", "45 degrees", 1), ("20", r"20^\circ\text{C}", 1),
        ("20 °C", r"20^{\circ}C", 1), ("20", "20 °C", 1), ("20 °C", "20℃", 1), ("20 °C", "20 degrees Celsius", 1),
        ("20 °C", "20 °F", 0), ("45°", r"\frac{\pi}{4}", 0), ("45°", "54°", 0),
    ],
    "sets": [
        (r"\{2,1\}", r"\{1,2\}", 1), (r"\{1,2\}", r"\left\{ 1, 2 \right\}", 1), (r"\{1,2\}", "1, 2", 1),
        (r"\emptyset", r"\varnothing", 1), (r"\emptyset", r"\{\}", 1), (r"\{1,2\}", r"\lbrace 1,2\rbrace", 1),
        (r"\{1,2\}", "{1, 2}", 1),
        (r"\{1,2\}", r"\{1,3\}", 0), (r"\{1,2\}", r"\{1,2,3\}", 0), (r"\{1,2\}", "(1,2)", 0),
    ],
    "tuples": [
        ("(1, 2)", r"\left(1,2\right)", 1), ("(1,2)", r"(1,\frac{4}{2})", 1),
        ("(0.5, -1)", r"\left(\frac{1}{2},-1\right)", 1), ("(1,2),(3,4)", "(3,4),(1,2)", 1), ("(3,4)", "(x,y) = (3,4)", 1),
        ("(1,2)", "(1,2)", 1), ("x=1,y=2", "y=2,x=1", 1),
        ("(1, 2)", "(2,1)", 0), ("(1,2,3)", "(1,2)", 0), ("(1,2)", "1,2", 0), ("(1,2)", "[1,2]", 0), ("(1,2)", r"\{1,2\}", 0),
        ("[1,2]", "1,2", 0), ("(2, 3)", "2 3", 0), ("x=1,y=2", "(1,2)", 0),
    ],
    "intervals": [
        (r"\left[0,\frac{2}{2}\right)", "[0, 1)", 1), (r"(-\infty, 3]", r"(-\infty,3]", 1),
        (r"(-\infty,1)\cup(2,\infty)", r"(2,\infty)\cup(-\infty,1)", 1), (r"[2,\infty)", r"x\ge 2", 1),
        ("[2, 5]", r"2 \le x \le 5", 1), (r"x \in [2,5]", "[2,5]", 1),
        ("(0,1]", "[0,1)", 0), ("[0,1]", "(0,1)", 0), (r"(2,\infty)", r"x\ge 2", 0),
    ],
    "lists": [
        ("1, 2", "2, 1", 1), ("1, 2", "1 and 2", 1), ("2, 3, 5", "2,3,5", 1), ("x=2 or x=3", "x = 2 or x = 3", 1),
        ("2, 3", "x=2, x=3", 1), ("2,3", r"x = 2 \text{ or } x = 3", 1), ("1, 1, 2", "1, 2", 1),
        ("1,2,3", "1,2", 0), ("1,2", "1,2,3", 0),
    ],
    "radicals": [
        (r"\sqrt{2}", r"\sqrt2", 1), ("4", r"\sqrt{16}", 1), (r"\frac{1}{\sqrt 2}", r"\frac{\sqrt{2}}{2}", 1),
        (r"2\sqrt{3}", r"\sqrt{12}", 1), (r"\sqrt{2}", "√2", 1), (r"\sqrt[3]{8}", "2", 1), (r"\sqrt{2}", "sqrt(2)", 1),
        (r"\sqrt{5}", "5^{1/2}", 1), (r"2\sqrt3", "2√3", 1), (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5+2\sqrt{6}}", 1),
        (r"\sqrt{2}", "1.414214", 0), (r"2\sqrt{3}", r"3\sqrt{2}", 0),
    ],
    "pi": [
        (r"\pi", "π", 1), (r"\frac{\pi}{4}", r"0.25\pi", 1), (r"2\pi", r"\pi \cdot 2", 1), (r"9\pi", "9 pi", 1),
        (r"9\pi\text{ cm}^2", r"9\pi", 1),
        (r"\pi", "3.14159265", 0), (r"9\pi", "9", 0),
    ],
    "polynomials": [
        ("(x-1)(x+1)", "x^2-1", 1), (r"\frac{x}{2}", "0.5x", 1), ("x^2+2x+1", "(x+1)^2", 1), ("x^2+2x+1", "1+2x+x^2", 1),
        ("x²-1", "x^2-1", 1), ("x^{10}", "x^10", 1), ("2xy", "2yx", 1), ("x^2-1", "x²−1", 1),
        (r"\frac{1}{x+1}", "1/(x+1)", 1), ("e^{2x}", "(e^x)^2", 1), ("a+b", "b+a", 1), ("2e", "2*e", 1),
        ("x^2+2x+1", "x^2+2x+2", 0), ("x", "X", 0), ("3x", "3y", 0), ("2^n", "2^m", 0),
    ],
    "equations": [
        ("4", "x = 4", 1), ("x=4", "4", 1), ("y=2x+1", "2x+1", 1), ("y=2x+1", "y = 1+2x", 1), ("x=3", "3=x", 1),
        ("y=2x+1", "2x - y + 1 = 0", 1), ("f(x)=2x", "2x", 1), (r"x \geq 2", r"x\ge2", 1), ("x>2", "2<x", 1),
        ("x^2+y^2=1", "x^2 + y^2 - 1 = 0", 1), ("x = 4", r"x \approx 4", 1), ("x_1 = 4", "4", 1),
        ("3.14", r"\approx 3.14", 1),
        ("x = 4", "y = 4", 0), ("x=3", "x=4", 0), (r"x \geq 2", "x>2", 0),
    ],
    "matrices": [
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", 1),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", 1),
        (r"\begin{pmatrix}0.5\\2\end{pmatrix}", r"\begin{pmatrix}\frac12\\2\end{pmatrix}", 1),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}", 0),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}", 0),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", "(1,2)", 0),
    ],
    "words": [
        ("paris", "Paris", 1), ("Paris", r"\text{Paris}.", 1), ("all of the above", "All of the above.", 1),
        ("Evelyn", r"\mathrm{Evelyn}", 1), ("odd", r"\textbf{odd}", 1), ("Paris", "**Paris**", 1),
        ("Paris", "London", 0), ("Paris", "Paris, France", 0), ("4", "the answer is 4", 0), ("even", "odd", 0),
        ("two", "2", 0), ("4", "4 or more", 0), ("4", r"4\text{ or more}", 0), ("4", r"4\text{ maybe}", 0),
        ("412", "412 is wrong", 0), ("412", "412 not", 0),
    ],
    "choice letters": [
        ("A", "(A)", 1), ("A", "A.", 1), ("A", r"\text{A}", 1), ("A", r"\textbf{(A)}", 1), ("A", "A)", 1), ("(A)", "A", 1),
        ("a", "a", 1),
        ("A", "B", 0), ("A", "a", 0), ("A", "A, B", 0), ("A", "A or B", 0), ("AB", "BA", 0), ("C", "c", 0),
    ],
    "yes and no": [
        ("Yes", "yes", 1), ("yes", "Yes.", 1), ("True", "true", 1), ("Yes", r"\text{Yes}", 1),
        ("Yes", "No", 0), ("yes", "True", 0), ("True", "1", 0), ("no", "nope", 0),
    ],
    "infinities": [
        (r"\infty", "∞", 1), (r"\infty", r"+\infty", 1), (r"\infty", "infinity", 1), (r"-\infty", "−∞", 1),
        (r"\infty", r"-\infty", 0), (r"\infty", "10^{308}", 0),
    ],
    "plus-minus": [
        (r"\pm 2", r"\pm2", 1), (r"\pm 2", "2, -2", 1), (r"\pm 2", "±2", 1), (r"1 \pm \sqrt{2}", r"1+\sqrt2, 1-\sqrt2", 1),
        (r"x=\pm 3", r"\pm 3", 1),
        (r"\pm 2", "2", 0),
    ],
    "delimiters and spacing": [
        ("42", "42.", 1), ("42", "$42$", 1), ("42", "$$42$$", 1), ("42", "**42**", 1), ("42", r"\(42\)", 1),
        ("42", r"\[42\]", 1), ("-5", "−5", 1), ("-5", "–5", 1), ("42", r"\text{42}", 1), ("42", "４２", 1),
        ("42", r"\ 42\ ", 1), ("42", r"42\!", 1), ("42", r"\mathbf{42}", 1), ("42", "{42}", 1), ("x^2", r"x^{2}\,", 1),
        ("42", "42 .", 1), ("42", "= 42", 1), ("2/3", r"{2 \over 3}", 1), ("42", "`42`", 1),
        ("42", " 4 2 ", 0),
    ],
    "bases, ratios, functions, complex numbers": [
        ("1011_2", "1011_2", 1), ("1011_2", "1011_{2}", 1), ("1011_2", "1011", 1), ("3:4", "3:4", 1), ("3:4", "3 : 4", 1),
        ("3:4", "3/4", 1), ("5!", "120", 1), (r"\binom{5}{2}", "10", 1), ("2^{10}", "1024", 1), (r"\log_2 8", "3", 1),
        ("3+4i", "4i+3", 1), ("|x|", r"\left|x\right|", 1), ("x_1=4", "4", 1), ("7:30", "7:30", 1), ("Mary", "mary", 1),
        ("(-1)^n", "(-1)^{n}", 1), (r"\frac{3}{4}\pi", r"\frac{3\pi}{4}", 1), (r"\sin x", r"\sin(x)", 1),
        (r"\tan^{-1}(1)", r"\arctan 1", 1), (r"\frac{a}{b}", "a/b", 1), ("1e3", "1000", 1), ("1A_{16}", "1A", 1),
        ("1011_2", "11", 0), ("3:4", "4:3", 0), ("3+4i", "3-4i", 0), ("1011_2", "1011_3", 0), ("1A_{16}", "1B_{16}", 0),
        (r"\ln 2", r"\log 2", 0), ("e", "2.718281828", 0), ("X", "x", 0),
    ],
    "unicode signs": [
        ("√(x+1)", r"\sqrt{x+1}", 1), ("½x", "x/2", 1), ("x₁", "x_1", 1), ("πr²", r"\pi r^2", 1), ("2×3", "6", 1),
    ],
    "dozens and millions": [
        ("4000000", "4 million", 1), ("24", "2 dozen", 1), ("4000", "4 thousand", 1),
        ("4 billion", "4e9", 1), ("24 eggs", "2 dozen eggs", 1),
        ("4", r"4\text{ million}", 0), (r"\sqrt2", r"\sqrt2\text{ million}", 0), ("4", "4 million", 0), ("4 million", "4", 0),
        ("4", "4 dozen", 0), ("4", "4 thousand", 0),
    ],
    "several lines": [
        ("412\n", "412", 1), ("412", "\n412\n", 1), ("412", "$$\n412\n$$", 1), ("x^2", "\n\\[\nx^2\n\\]\n", 1),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", "\\begin{pmatrix}\n1\\\\\n2\n\\end{pmatrix}", 1),
        ("412", "412\nfoo", 0), ("412", "412\n\ncm", 0),
    ],
}  # fmt: skip

TURNS = [  # (the assistant's turn, the row's answer, what accuracy gives)
    (r"<think>easy</think> The answer is \boxed{4}.", "4", 1),
    (r"\boxed{4} wait, \boxed{3}", "3", 1),
    (r"\boxed{4} wait, \boxed{3}", "4", 0),
    (r"\boxed{3} and \boxed{4", "3", 1),
    (r"\boxed{\boxed{4}}", "4", 1),
    (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{\sqrt{2}}{2}", 1),
    (r"\boxed{x = 4}", "4", 1),
    (r"\boxed{}", "4", 0),
    (r"\boxed{5} <answer>4</answer> \boxed{6}", "4", 1),
    (r"<answer>The answer is \boxed{4}</answer>", "4", 1),
    ("<answer>4</answer> no: <answer>3</answer>", "3", 1),
    ("<answer>4</answer> no: <answer>3</answer>", "4", 0),
    ("<think>a</think> <answer></answer>", "4", 0),
    (r"<think>\boxed{4}</think>", "4", 0),
    (r"<think>\boxed{4}</think> It is \boxed{5}.", "4", 0),
    (r"<think>it is \boxed{4}", "4", 0),
    ("<think>it is <answer>4</answer>", "4", 0),
    ("<think>a</think> so it is four", "4", 0),
    ("", "4", 0),
    ("She has 1,200 + 34 apples.\n#### 1,234", "1234", 1),
    ("#### 1,234", "She has 1,200 + 34 = <<1200+34=1234>>1,234 apples.\n#### 1,234", 1),
    ("<think>a</think> #### 12\n#### 1,234\nThat is all.", "1234", 1),
    ("#### 1,235", "#### 1,234", 0),
    ("4", r"so it is \boxed{4}", 1),
]


def test_the_table_is_long_enough():
    pairs = [pair[:2] for rows in MATH.values() for pair in rows]
    assert len(pairs) == len(set(pairs)) >= 150


@pytest.mark.parametrize("topic", MATH)
def test_decided_pairs(topic):
    scores = [
        (gold, answer, value, accuracy("", f"<answer>{answer}</answer>", {"answer": gold}))
        for gold, answer, value in MATH[topic]
    ]
    assert not [(gold, answer, value, score.why) for gold, answer, value, score in scores if score.value != value]


@pytest.mark.parametrize("turn, gold, value", TURNS)
def test_decided_turns(turn, gold, value):
    score = accuracy("", turn, {"answer": gold})
    assert score.value == value, score.why


@pytest.mark.parametrize("topic", ["integers", "decimals", "fractions", "mixed numbers", "percent", "units", "degrees"])
@pytest.mark.parametrize(
    "turn", [r"\boxed{ANSWER}", r"\boxed{\,ANSWER.}", "<answer>\nANSWER\n</answer>", "<answer>$$ANSWER$$</answer>"]
)
def test_delimiters_change_no_decision(topic, turn):
    for gold, answer, value in MATH[topic]:
        assert accuracy("", turn.replace("ANSWER", answer), {"answer": gold}).value == value, (gold, answer)


def test_an_answer_of_any_length_takes_little_time():
    start = time.process_time()
    assert accuracy("", "a. " * 2_000_000, {"answer": "412"}).value == 0.0
    assert time.process_time() - start < 0.5


def test_hostile_answers_cost_no_honest_one_anything():
    hostile = list(reward_throughput.HOSTILE.values())
    items, values = reward_throughput.items(1000 + len(hostile), hostile)
    assert sum(value is not None for value in values) == 1000 and len(hostile) >= 36
    limit = 3.0
    with Pool(Workers(count=2, timeout=limit)) as pool:
        pool.check(["accuracy"])
        start = time.monotonic()
        scores = [score["accuracy"] for score in pool.score(items)]
        seconds = time.monotonic() - start
    for item, score, value in zip(items, scores, values, strict=True):
        assert score.value == (value or 0.0), (item.completion[:100], score)
        assert value is None or score.status == "ok", (item.completion[:100], score)
    # The guard stops nearly all: the limit is for what nobody thought of.
    assert sum(score.status != "ok" for score in scores) <= 2, [score for score in scores if score.status != "ok"]
    assert seconds < 60


UNGUARDED = """
from r1jax.rewards import accuracy
def unguarded(prompt, completion, row):
    return accuracy._symbolically_equal(completion, row["answer"])
"""


def score_without_guard(folder, hostile):
    """The scores of the hostile answers when all goes to math-verify, with two honest answers around each."""
    (folder / "reward.py").write_text(UNGUARDED)
    name, limit = f"{folder}/reward.py:unguarded", 4.0  # a busy machine keeps honest answers within it
    items = []
    for answer in hostile:
        items += [Item("", rf"\frac{{{len(items)}}}{{2}}", {"answer": rf"{len(items)}\cdot 0.5"}, (name,))]
        items += [Item("", answer, {"answer": reward_throughput.GOLD}, (name,))]
        items += [Item("", r"\sqrt{2}", {"answer": r"\sqrt{3}"}, (name,))]
    with Pool(Workers(count=2, timeout=limit)) as pool:
        scores = [score[name] for score in pool.score(items)]
    assert [(s.value, s.status) for s in scores[::3]] == [(1.0, "ok")] * len(hostile)
    assert [(s.value, s.status) for s in scores[2::3]] == [(0.0, "ok")] * len(hostile)
    return scores[1::3]


def test_what_passes_the_guard_ends_at_the_limit(tmp_path):
    scores = score_without_guard(tmp_path, ["9^{9^{9^{9}}}", "(10^9)!"])
    assert [(s.value, s.status) for s in scores] == [(0.0, "timeout")] * 2


@pytest.mark.slow
def test_all_hostile_answers_end_at_the_limit_without_the_guard(tmp_path):
    scores = score_without_guard(tmp_path, list(reward_throughput.HOSTILE.values()))
    assert all(s.value == 0.0 for s in scores)
    assert sum(s.status != "ok" for s in scores) >= 10
