"""The table of variables, and the words of errors."""

import pickle

import pytest

from dsv4core import env, errors


def test_every_variable_is_documented() -> None:
    table = env.markdown()
    assert all(variable.doc.endswith(".") and f"`{variable.name}`" in table for variable in env.VARIABLES)
    assert len(table.splitlines()) == 2 + len(env.VARIABLES)
    assert all(line.count("|") == 5 for line in table.splitlines())


def test_defaults_and_empty_values() -> None:
    assert env.read("DSV4CORE_BACKEND", {}) == "auto"
    assert env.read("DSV4CORE_BACKEND", {"DSV4CORE_BACKEND": " "}) == "auto"
    assert env.read("DSV4CORE_PLUGINS", {}) == "all"
    assert env.read("DSV4CORE_PLUGINS", {"DSV4CORE_PLUGINS": ""}) == ""
    assert env.read_names("DSV4CORE_DISABLE_BACKENDS", {"DSV4CORE_DISABLE_BACKENDS": "a, ,b,"}) == ("a", "b")


def test_a_wrong_word_is_refused_with_the_nearest() -> None:
    with pytest.raises(errors.ConfigError, match="expected error or warn or allow; did you mean error\\?"):
        env.read("DSV4CORE_FALLBACK", {"DSV4CORE_FALLBACK": "eror"})


def test_an_undeclared_variable_cannot_be_read() -> None:
    with pytest.raises(KeyError):
        env.read("DSV4CORE_SECRET", {})


def test_settings_of_one_backend() -> None:
    values = {"DSV4CORE_CPU_THREADS": "4", "DSV4CORE_CUDA_X": "1", "DSV4CORE_BACKEND": "cpu", "PATH": "/"}
    assert env.settings("cpu", values) == {"threads": "4"}
    assert env.unknown({"cpu": None}, values) == {"DSV4CORE_CUDA_X": None}


def test_a_mistyped_setting_of_a_backend_is_unknown() -> None:
    values = {"DSV4CORE_CPU_NATVE": "off", "DSV4CORE_CPU_NATIVE": "off", "DSV4CORE_ACME_ANY": "1"}
    declared = {"cpu": ("native", "level"), "acme": None}
    assert env.unknown(declared, values) == {"DSV4CORE_CPU_NATVE": "DSV4CORE_CPU_NATIVE"}
    assert env.unknown({"cpu": ()}, values).keys() == values.keys()


def test_an_unknown_request_reads_like_a_sentence() -> None:
    error = errors.UnknownRequestError("no request 7; here: 1, 2")
    assert str(error) == "no request 7; here: 1, 2"
    assert isinstance(error, KeyError)
    assert isinstance(error, errors.CacheError)


def test_an_op_argument_error_keeps_its_parts() -> None:
    error = pickle.loads(pickle.dumps(errors.OpArgumentError("linear", "x", "bf16 [T, K]", "f64 [3]")))
    assert (error.op, error.argument, error.expected, error.got) == ("linear", "x", "bf16 [T, K]", "f64 [3]")
    assert str(error) == "linear: argument 'x' must be bf16 [T, K], got f64 [3]"
