"""Settings that contradict each other: all are reported together, before anything is built."""

import pytest

from bookstore_grpc.errors import StartupError
from bookstore_grpc.server.settings import Settings
from bookstore_grpc.server.verification import problems_of

TLS = {"tls_cert": "a.pem", "tls_key": "a.key"}
TOKENS = {"token_issuer": "i", "token_audience": "a"}


def problems(**settings: object) -> list[str]:
    return problems_of(Settings(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"listen": ("127.0.0.1:0", "[::1]:0", "unix:/run/books"), "http_listen": "127.0.0.1:0"},
        {"listen": ("0.0.0.0:0",), "insecure": True},
        {
            "listen": ("0.0.0.0:0",),
            "http_listen": "[::]:0",
            **TLS,
            "tls_client_ca": "ca.pem",
            "client_scopes": ("a=b",),
        },
        {"jwks_file": "keys", **TOKENS},
        {"jwks_url": "https://keys.example", **TOKENS},
        {"jwks_url": "http://127.0.0.1/keys", **TOKENS},
        {"workers": 2, "channelz_listen": "127.0.0.1:0", "metrics_listen": "0.0.0.0:9464"},
        {"channelz_listen": "unix:/run/channelz"},
        {"trace_endpoint": "https://collector.example:4317/"},
        {"http_origins": ("*",), "http_hosts": ("a b",)},  # not used without --http-listen
    ],
    ids=str,
)
def test_settings_that_can_be_served_have_no_problem(settings: dict[str, object]) -> None:
    assert problems(**settings) == []


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"listen": ("nonsense",)}, "The address 'nonsense' is neither HOST:PORT nor unix:PATH."),
        ({"listen": ("0.0.0.0:1",)}, "0.0.0.0:1 can be reached from other machines"),
        ({"listen": ("unix:/a",), "workers": 2}, "Several workers cannot share unix:/a"),
        ({"http_listen": "nonsense"}, "The address 'nonsense'"),
        ({"http_listen": "unix:/a"}, "HTTP needs an address of the form HOST:PORT"),
        ({"http_listen": "[::]:0"}, "[::]:0 can be reached from other machines"),
        ({"http_listen": "127.0.0.1:50051"}, "gRPC and HTTP cannot both listen on 127.0.0.1:50051"),
        ({"http_listen": "127.0.0.1:0", "http_origins": ("*",)}, "--http-origins '*' is not an origin"),
        ({"http_listen": "127.0.0.1:0", "http_hosts": ("a b",)}, "--http-hosts 'a b' is not a host name"),
        ({"tls_cert": "a.pem"}, "TLS needs both --tls-cert and --tls-key."),
        ({"tls_key": "a.key"}, "TLS needs both --tls-cert and --tls-key."),
        ({"tls_client_ca": "a.pem"}, "--tls-client-ca is for TLS"),
        ({**TLS, "insecure": True}, "--insecure and --tls-cert contradict each other"),
        ({"token_issuer": "i"}, "Tokens cannot be checked without keys"),
        ({"jwks_file": "a", "jwks_url": "https://a", **TOKENS}, "The keys of tokens come from one place"),
        ({"jwks_file": "a"}, "Tokens are checked for their issuer and their audience"),
        ({"jwks_url": "http://keys.example", **TOKENS}, "The keys of tokens cannot come from --jwks-url"),
        ({"jwks_url": "https://[", **TOKENS}, "The keys of tokens cannot come from --jwks-url"),
        ({"client_scopes": ("a=b",)}, "--client-scopes is for callers with certificates"),
        ({**TLS, "tls_client_ca": "c", "client_scopes": ("a",)}, "--client-scopes 'a' is not of the form"),
        ({"metrics_listen": "nonsense"}, "The address 'nonsense'"),
        ({"metrics_listen": "unix:/a"}, "The address 'unix:/a' is not HOST:PORT."),
        ({"channelz_listen": "nonsense"}, "The address 'nonsense'"),
        ({"channelz_listen": "0.0.0.0:0"}, "0.0.0.0:0 can be reached from other machines, and channelz"),
        ({"channelz_listen": "127.0.0.1:1", "workers": 2}, "Several workers cannot share 127.0.0.1:1"),
        ({"trace_endpoint": "collector"}, "--trace-endpoint is not a URL"),
        ({"trace_endpoint": "http://["}, "--trace-endpoint is not a URL"),
    ],
    ids=str,
)
def test_what_cannot_be_served_is_one_sentence(settings: dict[str, object], sentence: str) -> None:
    (problem,) = problems(**settings)
    assert problem.startswith(sentence)
    with pytest.raises(StartupError) as caught:
        Settings(**settings).verify()  # type: ignore[arg-type]
    assert caught.value.message == problem


def test_several_problems_are_one_list() -> None:
    with pytest.raises(StartupError) as caught:
        Settings(listen=("a", "b"), tls_cert="c").verify()
    first, *problems = caught.value.message.splitlines()
    assert first == "3 settings cannot be used:"
    assert [problem[:6] for problem in problems] == ["- The ", "- The ", "- TLS "]


def test_a_value_that_may_hold_a_secret_is_not_repeated() -> None:
    settings = {"jwks_url": "http://u:hunter2@keys.example", "trace_endpoint": "http://h:1/?key=hunter2", **TOKENS}
    assert len(problems(**settings)) == 2
    assert "hunter2" not in " ".join(problems(**settings))
