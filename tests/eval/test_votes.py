"""Votes: what they are worth by hand, whether chance is told from preference, and what a bad file is answered."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from src.eval.votes import Vote, add_vote, preference_table, preferences, read_votes

HEAD = "case,rater,question,first,second,choice\n"


def written(tmp_path: Path, lines: str, head: str = HEAD) -> Path:
    path = tmp_path / "votes.csv"
    path.write_text(head + lines, encoding="utf-8")
    return path


def test_wins_ties_and_losses_are_counted_whichever_method_stands_first():
    votes = [
        Vote("a", "x", "", "ours", "theirs", "ours"),
        Vote("b", "x", "", "theirs", "ours", "ours"),
        Vote("c", "x", "", "theirs", "ours", "theirs"),
        Vote("d", "x", "", "ours", "theirs", "tie"),
    ]
    (found,) = preferences(votes)
    assert (found.method, found.other) == ("ours", "theirs")
    assert (found.won, found.tied, found.lost) == (2, 1, 1)
    assert found.share.mean == pytest.approx(2.5 / 4)


def test_one_preference_for_each_question_and_pair_in_the_order_of_the_file():
    votes = [
        Vote("a", "x", "concept", "p", "q", "p"),
        Vote("a", "x", "prompt", "p", "q", "q"),
        Vote("a", "x", "concept", "q", "r", "tie"),
    ]
    found = [(one.question, one.method, one.other, one.won, one.lost) for one in preferences(votes)]
    assert found == [("concept", "p", "q", 1, 0), ("concept", "q", "r", 0, 0), ("prompt", "p", "q", 0, 1)]


@pytest.mark.parametrize(
    ("against_every", "word"), [(8, "preferred"), (2, "undecided"), (1, "not preferred")], ids=["most", "half", "none"]
)
def test_the_verdict_is_the_intervals(against_every: int, word: str):
    votes = [
        Vote(f"case {c}", f"rater {r}", "", "p", "q", "q" if (c + r) % against_every == 0 else "p")
        for c in range(16)
        for r in range(8)
    ]
    (found,) = preferences(votes)
    assert found.word == word
    assert preference_table([found]).rows[0][-1] == word


def test_one_case_that_all_raters_prefer_says_nothing_of_other_cases():
    """With votes as independent, 20 to 10 of 30 would exclude one half; with three cases they do not."""
    votes = [Vote(f"case {c}", f"rater {r}", "", "p", "q", "q" if c == 2 else "p") for c in range(3) for r in range(10)]
    (found,) = preferences(votes)
    assert (found.won, found.lost, found.word) == (20, 10, "undecided")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", "holds no vote"),
        ("a,x,,p,q,r\n", "line 2 of .* chooses 'r'; write p, q, tie"),
        ("a,x,,p,p,p\n", "needs two different methods"),
        ("a,x,,p,tie,p\n", "neither called 'tie'"),
        ("a,,,p,q,p\n", "line 2 of .* has no rater"),
        ("a,x,,p,q,p\nb,x,,p,q,p\na,x,,q,p,q\n", "line 4 of .* repeats line 2: x answers on 'a' twice"),
        ("a,x,,p\n", "has no second"),
    ],
)
def test_a_bad_vote_is_refused_with_its_line(tmp_path: Path, lines: str, said: str):
    with pytest.raises(ValueError, match=said):
        read_votes(written(tmp_path, lines))


def test_a_file_without_a_column_or_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="has no column 'choice'"):
        read_votes(written(tmp_path, "a,x,p,q\n", "case,rater,first,second\n"))
    with pytest.raises(ValueError, match="there is no file"):
        read_votes(tmp_path / "nowhere.csv")
    (tmp_path / "other.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-8"):
        read_votes(tmp_path / "other.csv")


def test_a_spreadsheets_file_without_question_is_read(tmp_path: Path):
    path = tmp_path / "votes.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([["case", "rater", "first", "second", "choice"], ["ä, b", "x", "p", "q", "tie"]])
    assert read_votes(path) == [Vote("ä, b", "x", "", "p", "q", "tie")]


def test_the_command_prints_a_table_and_a_sentence_for_a_mistake(tmp_path: Path):
    path = written(tmp_path, "a,x,concept,p,q,p\nb,x,concept,p,q,p\n")
    command = [sys.executable, "-m", "src.eval.votes"]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, encoding="utf-8", check=True)
    assert "| concept | p | q | 2 | 0 | 0 |" in done.stdout
    failed = subprocess.run([*command, "none.csv"], capture_output=True, text=True, encoding="utf-8", check=False)
    assert failed.returncode == 1 and failed.stderr.startswith("error: there is no file none.csv")


def test_a_seed_tells_several_pictures_of_a_case_apart_and_makes_no_case_of_its_own(tmp_path: Path):
    head = HEAD.replace("choice", "choice,seed")
    lines = "".join(
        f"case {case},anna,,p,q,{choice},{seed}\n" for case, choice in enumerate("pqp") for seed in range(4)
    )
    votes = read_votes(written(tmp_path, lines, head))
    assert [vote.seed for vote in votes[:4]] == ["0", "1", "2", "3"]
    (found,), (once,) = preferences(votes), preferences(votes[::4])
    assert found.won == 8 and (found.share.low, found.share.high) == (once.share.low, once.share.high)
    with pytest.raises(ValueError, match="twice"):
        read_votes(written(tmp_path, lines + "case 0,anna,,p,q,q,0\n", head))


def test_votes_are_added_one_by_one_and_read_again(tmp_path: Path):
    path, votes = tmp_path / "new" / "votes.csv", [Vote(f"c{at}", "anna", "", "p", "q", "p", "0") for at in range(3)]
    for vote in votes:
        add_vote(path, vote)
    assert read_votes(path) == votes
    before = path.read_bytes()
    for wrong, answer in [
        (votes[0], "line 5 of .* repeats line 2: anna answers on 'c0' twice; keep one of the two"),
        (Vote("c9", "anna", "", "p", "q", "r"), "line 5 of .* chooses 'r'; write p, q, tie"),
        (Vote("c9", "", "", "p", "q", "p"), "line 5 of .* has no rater"),
        (Vote("c9", "anna", "", "p", "p", "p"), "needs two different methods"),
    ]:
        with pytest.raises(ValueError, match=answer):
            add_vote(path, wrong)
    assert path.read_bytes() == before
    add_vote(path, Vote("=1+1", "@bo", "", "p", "q", "tie"))
    assert read_votes(path)[-1] == Vote("'=1+1", "'@bo", "", "p", "q", "tie"), "no spreadsheet runs it"


def test_votes_of_an_older_file_keep_their_place_beside_new_ones(tmp_path: Path):
    path = written(tmp_path, "a,x,,p,q,p\n")
    add_vote(path, Vote("b", "x", "", "p", "q", "q", "3"))
    assert [(vote.case, vote.seed) for vote in read_votes(path)] == [("a", ""), ("b", "3")]
