"""Salts: who shares prefixes with whom."""

from hypothesis import given
from hypothesis import strategies as st

from api.flags import CacheScope
from api.serving.salts import resolved, salt_of

NAMES = st.text(alphabet="a1:", min_size=1, max_size=4)
SALTS = st.text(alphabet="a1:", max_size=4)
SCOPES = st.sampled_from(["server", "tenant"])


@given(SCOPES, NAMES, SALTS, SCOPES, NAMES, SALTS)
def test_different_requests_have_different_salts(
    scope: CacheScope, tenant: str, salt: str, other_scope: CacheScope, other_tenant: str, other_salt: str
) -> None:
    mine, theirs = salt_of(scope, tenant, salt), salt_of(other_scope, other_tenant, other_salt)
    if scope != other_scope:
        assert mine != theirs
    elif scope == "server":
        assert (mine == theirs) == (salt == other_salt)
    else:
        assert (mine == theirs) == ((tenant, salt) == (other_tenant, other_salt))


def test_without_salts_all_clients_of_a_server_share_prefixes() -> None:
    assert salt_of("server", "a", "") == salt_of("server", "b", "") == ""


def test_the_default_depends_on_keys() -> None:
    assert (resolved(None, demands_keys=False), resolved(None, demands_keys=True)) == ("server", "tenant")
    for demands_keys in (False, True):
        assert resolved("server", demands_keys=demands_keys) == "server"
        assert resolved("tenant", demands_keys=demands_keys) == "tenant"
