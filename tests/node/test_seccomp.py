import json
import subprocess
import sys
from pathlib import Path

from sandbox.node import seccomp

FILE = Path(seccomp.__file__).with_name("seccomp.json")


def rules_for(call):
    return [rule for rule in seccomp.profile()["syscalls"] if call in rule["names"]]


def test_the_shipped_file_is_what_the_source_says():
    assert FILE.read_text(encoding="utf-8") == seccomp.profile_text()
    assert json.loads(seccomp.shipped_profile()) == seccomp.profile()


def test_the_generator_prints_the_file():
    done = subprocess.run([sys.executable, "-m", "sandbox.node.seccomp"], capture_output=True, check=True, cwd=FILE.parents[2])
    assert done.stdout.decode() == FILE.read_text(encoding="utf-8")


def test_what_is_not_listed_is_refused():
    assert seccomp.profile()["defaultAction"] == "SCMP_ACT_ERRNO"


def test_nothing_refused_on_purpose_is_allowed_without_a_look_at_its_arguments():
    refused = {call for group in seccomp.REFUSED for call in group.split()}
    assert not refused & set(seccomp.allowed_names())
    assert {rule["action"] for call in refused for rule in rules_for(call)} <= {"SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW"}
    allowed_by_argument = {call for call in refused for rule in rules_for(call) if rule["action"] == "SCMP_ACT_ALLOW"}
    assert allowed_by_argument == {"personality"}


def test_calls_judged_by_argument_are_not_allowed_wholesale():
    assert not {"clone", "socket", "socketpair", "mknod", "mknodat", "personality"} & set(seccomp.allowed_names())


def test_only_three_socket_families_and_routes():
    families = [tuple(arg["value"] for arg in rule["args"]) for rule in rules_for("socket")]
    assert sorted(families) == [(1,), (2,), (10,), (16, 0)]
    assert all(arg["op"] == "SCMP_CMP_EQ" for rule in rules_for("socket") for arg in rule["args"])


def test_clone_may_make_no_namespace():
    (rule,) = rules_for("clone")
    (arg,) = rule["args"]
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert flag & arg["value"]
    assert (arg["op"], arg["valueTwo"]) == ("SCMP_CMP_MASKED_EQ", 0)


def test_clone3_answers_enosys_so_that_libraries_fall_back():
    (rule,) = rules_for("clone3")
    assert (rule["action"], rule["errnoRet"]) == ("SCMP_ACT_ERRNO", 38)


def test_mknod_makes_no_devices():
    kinds = {arg["valueTwo"] for call in ("mknod", "mknodat") for rule in rules_for(call) for arg in rule["args"]}
    assert not kinds & {0x2000, 0x6000}  # S_IFCHR, S_IFBLK


def test_no_foreign_architecture_is_let_in():
    assert all(not arch["subArchitectures"] for arch in seccomp.profile()["archMap"])
