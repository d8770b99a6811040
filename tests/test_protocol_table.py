"""The table of rules is true: every rule has a test, every test names a rule, and the page says so."""

import importlib.util
import re
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load_tool():
    spec = importlib.util.spec_from_file_location("protocol_table", ROOT / "docs" / "protocol_table.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


tool = load_tool()


def test_every_rule_has_a_test_and_every_test_names_a_rule():
    assert tool.problems(tool.read_rules(), tool.read_tests()) == []


def test_the_page_is_up_to_date():
    old = tool.PAGE.read_text()
    new = tool.page(old, tool.render(tool.read_rules(), tool.read_tests()))
    assert old == new, "run python docs/protocol_table.py"


def test_every_rule_of_ours_stands_in_the_chapter_of_its_section():
    order = [rule.id.partition("/")[0] for rule in tool.read_rules()]
    numbers = [[int(part) for part in re.findall(r"\d+", name)] for name in order if name.startswith("spec")]
    assert numbers == sorted(numbers)


# The tool itself -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("spec 7.1: the address.", {"spec 7.1"}),
        ("spec 7.1/id, mgmt 3.2/names: both.", {"spec 7.1/id", "mgmt 3.2/names"}),
        ("spec 8.2: no large frame; spec 8.3: no empty one.", {"spec 8.2", "spec 8.3"}),
        ("RFC 6455 7.4.1, RFC 6455 5.5: a code.", {"RFC 6455 7.4.1", "RFC 6455 5.5"}),
        ("failures: pong waits behind data.", {"failures"}),
        ("failures/lengths: nothing overflows.", {"failures/lengths"}),
        ("Reads what spec 7.1: says.", set()),
        ("spec without a number: no.", set()),
        ("", set()),
    ],
)
def test_names_are_found_in_the_first_line(line, names):
    assert tool.names_in(line) == names


@pytest.fixture
def tests_of(tmp_path):
    def read(source):
        folder = tmp_path / "tests" / "wire"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "test_x.py").write_text(textwrap.dedent(source))
        return tool.read_tests(tmp_path / "tests")

    return read


@pytest.fixture
def rules_of(tmp_path):
    def read(text):
        path = tmp_path / "rules.toml"
        path.write_text(text)
        return tool.read_rules(path)

    return read


def test_functions_and_methods_are_found(tests_of):
    found = tests_of('''
        def test_plain():
            """spec 1: one."""
        class TestThings:
            async def test_async(self):
                """spec 2.1/x: two.

                spec 3: not in the first line.
                """
        def test_silent():
            pass
        def helper():
            """spec 4: no test."""
        ''')
    assert [(test.node, test.names) for test in found] == [
        ("tests/wire/test_x.py::test_plain", {"spec 1"}),
        ("tests/wire/test_x.py::TestThings::test_async", {"spec 2.1/x"}),
    ]
    assert {test.file for test in found} == {"wire/test_x.py"}


RULES = """
[[rule]]
id = "spec 1/a"
says = "A."
match = "apple"
[[rule]]
id = "spec 1/b"
says = "B | or not."
also = "pear"
ours = true
[[rule]]
id = "spec 1/c"
says = "C."
[[rule]]
id = "spec 2.1"
says = "D."
"""


def test_what_proves_a_rule(tests_of, rules_of):
    rules = rules_of(RULES)
    tests = tests_of('''
        def test_1():
            """spec 1: an apple."""
        def test_2():
            """spec 2.1: an apple and a Pear."""
        def test_3():
            """spec 1/c: by name."""
        ''')
    proofs = {rule.id: [test.node[-1] for test in tests if rule.is_proved_by(test)] for rule in rules}
    assert proofs == {"spec 1/a": ["1"], "spec 1/b": ["2"], "spec 1/c": ["3"], "spec 2.1": ["2"]}
    assert tool.problems(rules, tests) == []


def test_gaps_and_strangers_are_named(tests_of, rules_of):
    rules = rules_of(RULES)
    tests = tests_of('''
        def test_1():
            """spec 1/z, spec 3, mgmt 1: nothing known."""
        def test_2():
            """spec 1, spec 2: a section and a chapter are known."""
        ''')
    assert tool.problems(rules, tests) == [
        "no test proves spec 1/a: A.",
        "no test proves spec 1/b: B | or not.",
        "no test proves spec 1/c: C.",
        "no test proves spec 2.1: D.",
        "tests/wire/test_x.py::test_1 names mgmt 1, which is no rule",
        "tests/wire/test_x.py::test_1 names spec 1/z, which is no rule",
        "tests/wire/test_x.py::test_1 names spec 3, which is no rule",
    ]


def test_the_table_is_one_of_markdown(tests_of, rules_of):
    tests = tests_of('def test_1():\n    """spec 1: an apple."""\n')
    table = tool.render(rules_of(RULES), tests)
    assert "| spec 1/a | A. | wire/test_x.py |" in table
    assert "| spec 1/b | B \\| or not. *Ours.* |  |" in table
    assert "| spec 1/c | C. |  |" in table


@pytest.mark.parametrize("text", ['[[rule]]\nid = "a"\nsays = ""\nwords = 1', '[[rule]]\nid = "a"\nsays = ""\n' * 2])
def test_bad_entries_are_errors(rules_of, text):
    with pytest.raises(ValueError, match="a"):
        rules_of(text)


def test_the_page_keeps_its_prose():
    assert tool.page(f"prose\n{tool.MARKER}\nold", "table\n") == f"prose\n{tool.MARKER}\n\ntable\n"
    with pytest.raises(ValueError, match="marker"):
        tool.page("prose", "table")
