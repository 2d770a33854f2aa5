"""compute-sanitizer and cuda-memcheck: real outputs with their ground truth, and what happens to logs on their way."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ArtifactMissing, ParseError
from places import DATA
from reports.columns import TABLES
from reports.readers import sanitizer
from reports.readers.sanitizer_record import classify, kernel_name
from reports.readers.sanitizer_text import parse, place

RECORDED = DATA / "sanitizer"
TEXTS = sorted(path for path in RECORDED.iterdir() if path.suffix in (".txt", ".log"))
XMLS = sorted(RECORDED.glob("*.xml"))
AVERY = "AveryClapp__ESMM-Research__memcheck_shared_oob_5446.txt"


def read(name: str):
    return sanitizer.read(RECORDED / name)


def findings(text: str, tmp_path: Path) -> pd.DataFrame:
    path = tmp_path / "log"
    path.write_bytes(text.encode())
    return sanitizer.read(path).tables["findings"]


# name, printed, reported, by_kind
TRUTH = [
    (AVERY, 100, 5446, {"Invalid __shared__ write": 100}),
    ("h100_2025.3_initcheck.txt", 64, 64, {"Uninitialized __global__ memory read": 64}),
    ("h100_2025.3_memcheck_leak.txt", 2, 2, {"Leak": 2}),
    ("h100_2025.3_memcheck_misaligned.txt", 35, 35, {"Invalid __global__ write": 32, "CUDA API error": 3}),
    ("h100_2025.3_memcheck_oob.txt", 31, 31, {"Invalid __global__ write": 28, "CUDA API error": 3}),
    ("h100_2025.3_racecheck.txt", 1, 1, {"Race": 1}),
    ("h100_2025.3_synccheck.txt", 8, 8, {"Barrier error": 8}),
    ("Kitware__CMake__cudamemcheck_01_initcheck.log", 3, 2,
     {"Uninitialized __global__ memory read": 1, "Unused memory": 1, "Host API memory access error": 1}),
    ("Kitware__CMake__cudamemcheck_02_synccheck.log", 2, 2, {"Barrier error": 2}),
    ("Kitware__CMake__cudamemcheck_03_memcheck.log", 5, 3,
     {"CUDA API error": 2, "Invalid __global__ read": 1, "UVM GPU fault": 1, "UVM CPU fault": 1}),
    ("Kitware__CMake__cudamemcheck_04_memcheck_with_leak_check_full.log", 1, 1, {"Leak": 1}),
    ("Kitware__CMake__cudamemcheck_05_racecheck_with_racecheck_report_all.log", 12, 12,
     {"WAR hazard": 4, "RAW hazard": 4, "Race": 4}),
    ("Kitware__CMake__cudamemcheck_06_false_positives.log", 0, None, {}),
    ("NVIDIA__compute-sanitizer-samples__NvtxMemoryPool_README_output.txt", 3, 3, {"Invalid __global__ write": 3}),
    ("NVIDIA__compute-sanitizer-samples__NvtxNaming_README_output.txt", 2, 2, {"Leak": 1, "Unused memory": 1}),
    ("NVIDIA__compute-sanitizer-samples__NvtxPermissions_README_output.txt", 4, 4,
     {"Invalid __global__ read": 2, "Invalid __global__ write": 1, "Invalid __global__ atomic": 1}),
]  # fmt: skip


def test_the_truth_is_told_of_every_text():
    assert {name for name, *_ in TRUTH} == {path.name for path in TEXTS}


@pytest.mark.parametrize("name, printed, reported, by_kind", TRUTH)
def test_counts(name, printed, reported, by_kind):
    artifact = read(name)
    summary = artifact.summary
    assert (summary["printed"], summary["reported"], summary["by_kind"]) == (printed, reported, by_kind)
    assert len(artifact.tables["findings"]) == printed == artifact.tables["findings"]["count"].sum()
    assert list(artifact.tables["findings"].columns) == list(TABLES["findings"])
    assert sanitizer.sniff(RECORDED / name, (RECORDED / name).read_bytes()[:65536])


@pytest.mark.parametrize("xml", XMLS, ids=lambda path: path.stem)
def test_xml_and_text_of_the_same_run_agree_row_for_row(xml):
    """All but the addresses, which differ from run to run."""
    from_xml, from_text = sanitizer.read(xml), sanitizer.read(xml.with_suffix(".txt"))
    left, right = (one.tables["findings"].drop(columns="address") for one in (from_xml, from_text))
    pd.testing.assert_frame_equal(left, right)
    for key in ("printed", "by_kind", "by_severity", "by_tool"):
        assert from_xml.summary[key] == from_text.summary[key]
    assert from_xml.summary["reported"] is None
    assert any("no summary" in note for note in from_xml.notes)


def test_an_out_of_bounds_write_of_either_format():
    for name in ("h100_2025.3_memcheck_oob.txt", "h100_2025.3_memcheck_oob.xml"):
        table = read(name).tables["findings"]
        writes, calls = table.iloc[:28], table.iloc[28:]
        assert set(writes["kernel"]) == {"oob"}
        assert set(zip(writes["file"], writes["line"], strict=True)) == {("bugs.cu", 3)}
        assert writes["thread_x"].tolist() == list(range(100, 128))
        assert set(writes["thread_y"]) == set(writes["block_x"]) == {0}
        assert set(writes["access"]) == {"write"}
        assert set(writes["size_bytes"]) == {4}
        assert set(writes["message"]) == {"Invalid __global__ write of size 4 bytes is out of bounds"}
        addresses = [int(address, 16) for address in writes["address"]]
        assert [address - addresses[0] for address in addresses] == [4 * number for number in range(28)]
        assert calls["api"].tolist() == ["cudaDeviceSynchronize", "cudaFree", "cudaFree"]
        assert set(table["tool"]) == {"memcheck"}


def test_a_template_kernel_of_cuda_12_1_with_program_output_between():
    artifact = read(AVERY)
    first = artifact.tables["findings"].iloc[0]
    assert first["kernel"] == "one_d_vec<(int)64, (int)64, (int)8, (int)8, (int)1>"
    assert (first["file"], first["line"], first["size_bytes"], first["address"]) == ("1D_vec.cu", 65, 16, "0x1800")
    assert (first["thread_x"], first["thread_y"], first["block_x"]) == (256, 0, 0)
    assert artifact.summary["not_printed"] == 5346
    assert "100 of 5446 findings are printed: the tool left 5346 out (--print-limit)" in artifact.notes
    details = artifact.tables["finding_details"]
    host = details[(details["finding"] == 0) & (details["role"] == "host")]
    assert len(host) == 11
    assert host.iloc[0]["module"] == "/lib64/libcuda.so.1"
    assert (host.iloc[7]["file"], host.iloc[7]["line"]) == ("/home/ec2-user/cuda_work/tests/driver.cu", 139)
    assert host.iloc[9][["function", "pc"]].tolist() == ["__libc_start_main", "0x2113a"]


def test_leaks_with_grouped_digits_and_the_totals_of_their_summary():
    artifact = read("h100_2025.3_memcheck_leak.txt")
    assert artifact.tables["findings"]["size_bytes"].tolist() == [400, 4096]
    assert (artifact.summary["leaked_bytes"], artifact.summary["leaked_allocations"]) == (4496, 2)


def test_a_race_names_both_accesses_and_the_hazards_between_them():
    for name in ("h100_2025.3_racecheck.txt", "h100_2025.3_racecheck.xml"):
        artifact = read(name)
        details = artifact.tables["finding_details"].query("role == 'access'")
        assert details["text"].tolist() == ["Write", "Read"]
        assert details["pc"].tolist() == ["0x90", "0xa0"]
        assert details["count"].fillna(0).tolist() == [0, 512]
        assert artifact.tables["findings"]["message"].tolist() == [
            "Race reported between Write access at race+0x90 in bugs.cu:5"
            " and Read access at race+0xa0 in bugs.cu:5 [512 hazards]"
        ]


def test_hazards_carry_their_byte_and_both_threads():
    table = read("Kitware__CMake__cudamemcheck_05_racecheck_with_racecheck_report_all.log").tables["findings"]
    assert table["address"].tolist()[:8] == ["0x3", "0x2", "0x1", "0x0"] * 2
    assert table["thread_x"].tolist()[:8] == [31] * 8
    assert table["access"].tolist()[:8] == ["read"] * 4 + ["write"] * 4
    assert set(table["severity"]) == {"warning"}


def test_a_target_that_died_is_told():
    artifact = read("Kitware__CMake__cudamemcheck_06_false_positives.log")
    assert artifact.summary["complete"] is False
    assert "Target application terminated before first instrumented API call" in artifact.summary["target"]
    assert any(note.startswith("no summary") for note in artifact.notes)


def test_no_errors_of_a_target_that_failed_are_not_called_clean(tmp_path):
    path = tmp_path / "log"
    path.write_text("========= COMPUTE-SANITIZER\n========= Target application returned an error\n"
                    "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n")  # fmt: skip
    artifact = sanitizer.read(path)
    assert (artifact.summary["printed"], artifact.summary["reported"]) == (0, 0)
    assert any("did not end well" in note for note in artifact.notes)


def test_the_count_of_hazards_is_that_of_errors_and_warnings_where_fewer_are_displayed(tmp_path):
    path = tmp_path / "log"
    path.write_text("========= RACECHECK SUMMARY: 20 hazards displayed (256 errors, 3 warnings)\n")
    summary = sanitizer.read(path).summary
    assert (summary["reported"], summary["displayed"], summary["errors"], summary["warnings"]) == (259, 20, 256, 3)


def test_several_runs_in_one_file_are_added_and_told():
    artifact = read("NVIDIA__compute-sanitizer-samples__NvtxNaming_README_output.txt")
    assert (artifact.summary["runs"], artifact.summary["reported"]) == (2, 2)
    assert "2 summaries: their counts are added" in artifact.notes


def test_a_second_run_without_a_summary_is_told(tmp_path):
    one = (RECORDED / "h100_2025.3_synccheck.txt").read_text()
    path = tmp_path / "log"
    path.write_text(one + one.rpartition("========= ERROR")[0])
    artifact = sanitizer.read(path)
    assert (artifact.summary["printed"], artifact.summary["reported"], artifact.summary["complete"]) == (16, 8, False)
    assert any(note.startswith("1 of 2 runs have a summary") for note in artifact.notes)


# --- layouts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, function, file, line, pc", [
    ("0x00000020 in test(int*, int*)", "test(int*, int*)", None, None, "0x20"),
    ("0x29f0 in /a/b.cu:65:void k<(int)64>(int, float *)", "void k<(int)64>(int, float *)", "/a/b.cu", 65, "0x29f0"),
    ("0x460 in myapp.cu:41", None, "myapp.cu", 41, "0x460"),
    ("oob(float *, int)+0x90 in bugs.cu:3", "oob(float *, int)", "bugs.cu", 3, "0x90"),
    ("sum(int *)+0x100 in /home/x/block error.cu:51", "sum(int *)", "/home/x/block error.cu", 51, "0x100"),
    ("max_kernel(const float *, int)+0x100", "max_kernel(const float *, int)", None, None, "0x100"),
    ("ns::k(ns::T *)+0x10 in C:\\src\\a.cu:7", "ns::k(ns::T *)", "C:\\src\\a.cu", 7, "0x10"),
    ("0x90 in C:\\src\\a.cu:7:ns::k(int)", "ns::k(int)", "C:\\src\\a.cu", 7, "0x90"),
    ("vector_add(float const *) in /input/kernel.cu:9", "vector_add(float const *)", "/input/kernel.cu", 9, None),
    ("test(int*, int*) (test(int*, int*) : 0x60)", "test(int*, int*)", None, None, "0x60"),
    ("/t/s.cu:20:glob(int*) (glob(int*) : 0x8f0)", "glob(int*)", "/t/s.cu", 20, "0x8f0"),
    ("p10_add_10_2d_...+0x80", "p10_add_10_2d_...", None, None, "0x80"),
    ("0x41b0 in triton__0d1d2d", "triton__0d1d2d", None, None, "0x41b0"),
])  # fmt: skip
def test_every_layout_of_a_place(text, function, file, line, pc):
    found = place(text)
    assert (found.function, found.file, found.line, found.pc) == (function, file, line, pc)


@pytest.mark.parametrize("function, kernel", [
    ("oob(float *, int)", "oob"),
    ("void k<(int)64>(int, f<(bool)1> *)", "k<(int)64>"),
    ("(anonymous namespace)::k(int)", "(anonymous namespace)::k"),
    ("(anonymous namespace)", "(anonymous namespace)"),
    ("S::operator()(int)", "S::operator()"),
    ("k", "k"),
    (")", ")"),
    (None, None),
])  # fmt: skip
def test_kernel_names_lose_their_parameters(function, kernel):
    assert kernel_name(function) == kernel


@pytest.mark.parametrize("frame", [
    "fa_s512_kernel(half *)+0x310 in fa_s512.cu:214",
    "/src/fa_s512.cu:214:fa_s512_kernel(half*) [0x310]",
    "/src/fa_s512.cu:214:fa_s512_kernel(half*) (fa_s512_kernel(half*) : 0x310)",
    "fa_s512_kernel(half *) [0x310]",
])  # fmt: skip
def test_the_kernel_is_the_outermost_device_frame_and_the_place_the_innermost(frame, tmp_path):
    table = findings(textwrap.dedent("""\
        ========= Invalid __shared__ write of size 16 bytes
        =========     at cp_async_16(void *, const void *)+0x390 in fa_s512.cu:97
        =========     by thread (1,2,3) in block (4,5,6)
        =========     Address 0x82 is misaligned
        =========         Device Frame: helper(int)+0x1 in fa_s512.cu:150
        =========         Device Frame: {}
        =========
        ========= ERROR SUMMARY: 450 errors
        """).format(frame), tmp_path)  # fmt: skip
    row = table.iloc[0]
    assert (row["kernel"], row["file"], row["line"]) == ("fa_s512_kernel", "fa_s512.cu", 97)
    assert row[["thread_x", "thread_y", "thread_z", "block_x", "block_y", "block_z"]].tolist() == [1, 2, 3, 4, 5, 6]


def test_an_unknown_kind_with_a_place_is_a_record_and_one_without_is_told(tmp_path):
    path = tmp_path / "log"
    path.write_text("========= COMPUTE-SANITIZER\n========= Quantum decoherence of size 8 bytes\n"
                    "=========     at k(int)+0x10 in a.cu:1\n=========\n========= Something about the tool\n"
                    "========= ERROR SUMMARY: 1 error\n")  # fmt: skip
    artifact = sanitizer.read(path)
    assert artifact.summary["by_kind"] == {"Quantum decoherence": 1}
    assert "the tool says: Something about the tool" in artifact.notes


def test_two_processes_in_lockstep_are_told_apart_and_by_their_tags(tmp_path):
    lines = ["Invalid __global__ read of size 4 bytes", "    at k(int)+0x10 in a.cu:{}",
             "    by thread ({},0,0) in block (0,0,0)", "    Address 0x{}0 is out of bounds", ""]  # fmt: skip
    lockstep = "".join(f"========= {line.format(n)}\n" for line in lines for n in (1, 2))
    tagged = "".join(f"[1,{n}]<stdout>:========= {line.format(n)}\n" for line in [*lines, *lines] for n in (1, 2))
    for text, times in ((lockstep, 1), (tagged, 2)):
        table = findings(text, tmp_path)
        rows = list(zip(table["line"], table["thread_x"], table["address"], strict=True))
        assert sorted(rows) == sorted([(1, 1, "0x10"), (2, 2, "0x20")] * times)


# --- what happens to a log on its way ------------------------------------------------------------------------------

NOISE = st.sampled_from([
    "", "no error", "tests/test_a.py ..F", "========= test session starts =========", "===== 5 passed in 1.00s =====",
    "[==========] Running 3 tests from 1 test suite.", "========= short test summary info =========", "x = 5",
    "at 0x90 in the morning", "ERROR SUMMARY: none",
])  # fmt: skip


@pytest.mark.parametrize("name", [path.name for path in TEXTS if path.stat().st_size < 9000])
@given(extra=st.lists(st.tuples(st.integers(0, 10_000), NOISE), max_size=30))
def test_program_output_between_the_lines_changes_nothing(name, extra):
    lines = (RECORDED / name).read_text().split("\n")
    expected = parse("\n".join(lines))
    for at, line in extra:
        lines.insert(at % len(lines), line)
    found = parse("\n".join(lines))
    assert (found.records, found.summaries) == (expected.records, expected.summaries)


@pytest.mark.parametrize("before", ["    ", "2026-11-22T23:10:11.1234567Z ", "[12:01:02] ", "\x1b[31m", "\t| "])
@pytest.mark.parametrize("name", [path.name for path in TEXTS])
def test_indentation_timestamps_colours_and_windows_line_ends_change_nothing(name, before, tmp_path):
    path = tmp_path / "log"
    changed = "\r\n".join(before + line for line in (RECORDED / name).read_text().split("\n"))
    path.write_bytes(changed.encode("utf-16"))  # with its mark, as a redirection in PowerShell writes it
    pd.testing.assert_frame_equal(sanitizer.read(path).tables["findings"], read(name).tables["findings"])


@pytest.mark.parametrize("name", [path.name for path in TEXTS])
def test_first_lines_within_other_output_change_nothing(name, tmp_path):
    text = (RECORDED / name).read_text()
    changed = "\n".join(
        f"Progress {at}%{line}" if line.startswith("========= ") and classify(line[10:].strip()) else line
        for at, line in enumerate(text.split("\n"))
    )
    pd.testing.assert_frame_equal(findings(changed, tmp_path), read(name).tables["findings"])


def hard_wrapped(line: str, width: int = 80) -> str:
    return "\r\n".join(line[at : at + width] for at in range(0, max(len(line), 1), width))


@pytest.mark.parametrize("name", [path.name for path in TEXTS if "Avery" not in path.name])
def test_a_console_of_80_columns_changes_nothing(name, tmp_path):
    text = (RECORDED / name).read_text()
    wrapped = "\r\n".join(map(hard_wrapped, text.split("\n")))
    assert wrapped.count("\n") > text.count("\n") or all(len(line) <= 80 for line in text.split("\n"))
    left, right = findings(wrapped, tmp_path), read(name).tables["findings"]
    pd.testing.assert_frame_equal(left, right)


def test_a_sentence_broken_between_words_is_put_together(tmp_path):
    table = findings("========= Program hit cudaErrorLaunchFailure (error 719) due to \"unspecified\n"
                     "launch failure\" on CUDA API call to cudaDeviceSynchronize.\n========= \n", tmp_path)  # fmt: skip
    assert table["api"].tolist() == ["cudaDeviceSynchronize"]


@given(cut=st.floats(0, 1), name=st.sampled_from([path.name for path in TEXTS]))
def test_a_truncated_text_keeps_its_whole_records(cut, name):
    text = (RECORDED / name).read_text()
    whole = parse(text).records
    found = parse(text[: int(cut * len(text))]).records
    assert len(found) <= len(whole)
    assert found[:-1] == whole[: max(len(found) - 1, 0)]


@given(cut=st.floats(0, 1), name=st.sampled_from([path.name for path in XMLS]))
def test_a_truncated_xml_keeps_its_whole_records_and_says_so(cut, name, tmp_path_factory):
    data = (RECORDED / name).read_bytes()
    path = tmp_path_factory.getbasetemp() / "cut.xml"
    path.write_bytes(data[: int(cut * len(data))])
    whole = read(name).tables["findings"]
    if path.stat().st_size < 64:  # not even the root element
        with pytest.raises(ParseError):
            sanitizer.read(path)
        return
    artifact = sanitizer.read(path)
    found = artifact.tables["findings"]
    pd.testing.assert_frame_equal(found, whole.iloc[: len(found)])
    assert len(found) == len(whole) or any("ends too early" in note for note in artifact.notes)


@given(st.lists(st.sampled_from(
    [line for path in TEXTS if path.stat().st_size < 9000 for line in path.read_text().split("\n")]
), max_size=60))  # fmt: skip
def test_shuffled_lines_are_read_without_a_mishap(lines):
    log = parse("\n".join(lines))
    firsts = sum(classify(line.removeprefix("=========").strip().removeprefix("WARN: ")) is not None for line in lines)
    assert len(log.records) <= len(lines)
    assert len(log.records) >= firsts


@given(st.binary(max_size=400))
def test_anything_else_is_refused(data):
    path = Path("garbage")
    text = data.decode("utf-8", errors="replace")
    if sanitizer.is_text(text):
        return
    with pytest.raises(ParseError, match="expected lines of compute-sanitizer"):
        sanitizer.from_text(path, text)


@pytest.mark.parametrize("data, message", [
    (b"", "0 bytes"),
    (b" \n\n", "all blank"),
    (b"hello", "hello"),
    (b"<ComputeSanitizerOutputs/>", "<ComputeSanitizerOutputs>"),
    (b"<!DOCTYPE x [<!ENTITY a 'b'>]><ComputeSanitizerOutput>&a;</ComputeSanitizerOutput>", "DOCTYPE"),
])  # fmt: skip
def test_refusals_name_what_stood_there(data, message, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(ParseError, match=message):
        sanitizer.read(path)


def test_an_absent_file(tmp_path):
    with pytest.raises(ArtifactMissing):
        sanitizer.read(tmp_path / "absent")


def test_xml_without_a_record_and_with_unknown_elements_is_told(tmp_path):
    path = tmp_path / "x"
    path.write_text("<ComputeSanitizerOutput><future/></ComputeSanitizerOutput>")
    artifact = sanitizer.read(path)
    assert artifact.summary["printed"] == 0
    assert any("no record" in note for note in artifact.notes)
    assert any("<future>" in note for note in artifact.notes)


def test_broken_characters_are_told(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"\xff\xfe\xfd"[1:] + b"\n" + (RECORDED / "h100_2025.3_synccheck.txt").read_bytes())
    artifact = sanitizer.read(path)
    assert artifact.summary["printed"] == 8
    assert any("not valid text" in note for note in artifact.notes)


def test_long_lines_take_no_long_time():
    parse("========= " + "a (" * 200_000)
    parse("=" * 400_000 + " x")
    parse("========= at " + "x in " * 100_000 + "\n========= Host Frame: " + "[0x1] " * 100_000)
