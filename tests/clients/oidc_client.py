"""Authlib and the kfp SDK against a box that registers clients in its configuration.

Environment: KFBOX_URL, KFBOX_EMAIL, KFBOX_PASSWORD, KFBOX_NAMESPACE.
"""

import base64
import hashlib
import os
import time
from urllib.parse import parse_qs, urlsplit

import kfp
import requests
from authlib.common.security import generate_token
from authlib.integrations.base_client.errors import OAuthError
from authlib.integrations.requests_client import OAuth2Session
from joserfc import jwt
from joserfc.jwk import KeySet

# The box of this test is on loopback; Authlib counts only the name localhost as such.
os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"
URL = os.environ["KFBOX_URL"]
EMAIL, PASSWORD, NAMESPACE = (os.environ[f"KFBOX_{n}"] for n in ("EMAIL", "PASSWORD", "NAMESPACE"))
META = requests.get(f"{URL}/dex/.well-known/openid-configuration", timeout=10).json()
# Nobody listens there: the browser's part ends at the redirect.
CALLBACK = "http://127.0.0.1:9/callback"
DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ID_TYPE = "urn:ietf:params:oauth:token-type:id_token"


class Browser(requests.Session):
    """Follows redirects until one leaves the box."""

    def visit(self, url):
        answer = self.get(url, allow_redirects=False, timeout=10)
        return self.follow(answer)

    def follow(self, answer):
        while answer.is_redirect:
            to = requests.compat.urljoin(answer.url, answer.headers["location"])
            if not to.startswith(URL):
                return to
            answer = self.get(to, allow_redirects=False, timeout=10)
        return answer

    def sign_in(self, page):
        form = {"login": EMAIL, "password": PASSWORD}
        return self.follow(self.post(page.url, data=form, allow_redirects=False, timeout=10))


def refused(work, error):
    try:
        work()
    except OAuthError as found:
        assert found.error == error, found
    else:
        raise AssertionError(f"{error} was expected")


def claims_of(token, audience, nonce):
    keys = KeySet.import_key_set(requests.get(META["jwks_uri"], timeout=10).json())
    decoded = jwt.decode(token["id_token"], keys, algorithms=["ES256"])
    jwt.JWTClaimsRegistry(
        iss={"essential": True, "value": META["issuer"]},
        aud={"essential": True, "value": audience},
        nonce={"essential": True, "value": nonce},
    ).validate(decoded.claims)
    half = hashlib.sha256(token["access_token"].encode()).digest()[:16]
    assert decoded.claims["at_hash"] == base64.urlsafe_b64encode(half).rstrip(b"=").decode()
    return decoded.claims


def by_code(browser, client_id, secret, method):
    nonce, verifier = generate_token(20), generate_token(48)
    session = OAuth2Session(
        client_id,
        secret,
        scope="openid email groups offline_access",
        redirect_uri=CALLBACK,
        code_challenge_method="S256",
        token_endpoint_auth_method=method,
    )
    url, state = session.create_authorization_url(META["authorization_endpoint"], code_verifier=verifier, nonce=nonce)
    to = browser.visit(url)
    if not isinstance(to, str):
        to = browser.sign_in(to)
    assert to.startswith(CALLBACK + "?"), to
    query = parse_qs(urlsplit(to).query)
    assert query["state"] == [state] and query["iss"] == [META["issuer"]], query
    token = session.fetch_token(
        META["token_endpoint"], authorization_response=to, state=state, code_verifier=verifier
    )
    claims = claims_of(token, client_id, nonce)
    assert claims["email"] == EMAIL and claims["email_verified"] is True, claims
    # The same answer a second time: the code is used, and what it gave has ended.
    refused(
        lambda: session.fetch_token(
            META["token_endpoint"], authorization_response=to, state=state, code_verifier=verifier
        ),
        "invalid_grant",
    )
    refused(lambda: session.refresh_token(META["token_endpoint"], refresh_token=token["refresh_token"]), "invalid_grant")
    # Once more, and use it.
    url, state = session.create_authorization_url(META["authorization_endpoint"], code_verifier=verifier, nonce=nonce)
    token = session.fetch_token(
        META["token_endpoint"], authorization_response=browser.visit(url), state=state, code_verifier=verifier
    )
    fresh = session.refresh_token(META["token_endpoint"], refresh_token=token["refresh_token"])
    assert fresh["refresh_token"] != token["refresh_token"] and fresh["id_token"], fresh
    info = session.get(META["userinfo_endpoint"], timeout=10).json()
    assert info["email"] == EMAIL and info["sub"] == claims["sub"], info
    return session, fresh


def revocation(session, token):
    told = session.introspect_token(META["introspection_endpoint"], token=token["access_token"]).json()
    assert told["active"] and told["username"] == EMAIL, told
    assert session.revoke_token(META["revocation_endpoint"], token=token["refresh_token"]).status_code == 200
    told = session.introspect_token(META["introspection_endpoint"], token=token["access_token"]).json()
    assert told == {"active": False}, told
    refused(lambda: session.refresh_token(META["token_endpoint"], refresh_token=token["refresh_token"]), "invalid_grant")


def device_flow(browser):
    session = OAuth2Session("kfbox-cli", token_endpoint_auth_method="none")
    begun = requests.post(
        META["device_authorization_endpoint"], data={"client_id": "kfbox-cli", "scope": "openid groups"}, timeout=10
    ).json()
    assert begun["verification_uri"] == f"{META['issuer']}/device", begun

    def poll():
        return session.fetch_token(META["token_endpoint"], grant_type=DEVICE, device_code=begun["device_code"])

    refused(poll, "authorization_pending")
    refused(poll, "slow_down")
    page = browser.get(begun["verification_uri_complete"], timeout=10)
    assert begun["user_code"] in page.text
    verify = f"{META['issuer']}/device/auth/verify_code"
    page = browser.post(verify, data={"user_code": begun["user_code"]}, timeout=10)
    assert EMAIL in page.text and 'value="approve"' in page.text, page.text
    page = browser.post(verify, data={"user_code": begun["user_code"], "approval": "approve"}, timeout=10)
    assert "Connected" in page.text, page.text
    return poll()


def token_exchange(token):
    """A service takes a user's platform token and gets one of its own; no other client may."""

    def exchange(client_id, secret):
        session = OAuth2Session(client_id, secret, token_endpoint_auth_method="client_secret_post")
        return session.fetch_token(
            META["token_endpoint"],
            grant_type=EXCHANGE,
            subject_token=token["id_token"],
            subject_token_type=ID_TYPE,
            connector_id="local",
            scope="openid groups",
        )

    got = exchange("service", "a-secret-of-the-service")
    assert got["issued_token_type"].endswith(":access_token") and "refresh_token" not in got, got
    refused(lambda: exchange("notebook", "a-secret-of-the-notebook"), "unauthorized_client")


def form_login_for_kfp():
    """What Kubeflow documents for scripts outside the cluster: the login form of Dex, then the cookies to the SDK."""
    session = requests.Session()
    page = session.get(f"{URL}/pipeline", timeout=10)
    assert page.history and urlsplit(page.url).path == "/dex/auth/local/login", page.url
    wrong = session.post(page.url, data={"login": EMAIL, "password": "not it"}, timeout=10)
    assert not wrong.history and not session.cookies, "a login that failed is told by staying where one is"
    done = session.post(page.url, data={"login": EMAIL, "password": PASSWORD}, timeout=10)
    assert done.status_code == 200 and done.history, done
    cookies = "; ".join(f"{c.name}={c.value}" for c in session.cookies)
    assert "oauth2_proxy_kubeflow=" in cookies
    client = kfp.Client(host=f"{URL}/pipeline", cookies=cookies, namespace=NAMESPACE)
    client.list_experiments(namespace=NAMESPACE)


def existing_token(token):
    client = kfp.Client(host=f"{URL}/pipeline", existing_token=token["id_token"], namespace=NAMESPACE)
    client.list_experiments(namespace=NAMESPACE)
    bad = kfp.Client(host=f"{URL}/pipeline", existing_token=token["id_token"][:-4], namespace=NAMESPACE)
    try:
        bad.list_experiments(namespace=NAMESPACE)
    except Exception as error:  # the SDK has several types for it
        assert "401" in str(error), error
    else:
        raise AssertionError("a cut token was accepted")


def main():
    browser = Browser()
    by_code(browser, "laptop", None, "none")
    session, token = by_code(browser, "notebook", "a-secret-of-the-notebook", "client_secret_basic")
    revocation(session, token)
    started = time.monotonic()
    token = device_flow(browser)
    assert time.monotonic() - started < 60
    token_exchange(token)
    existing_token(token)
    form_login_for_kfp()
    # Registered, and not what was asked for: nothing leaves the box.
    for uri in ("http://127.0.0.1:9/callback/", "http://127.0.0.1:9/callback?x=1", "http://localhost:9/callback"):
        answer = browser.visit(f"{META['authorization_endpoint']}?client_id=laptop&response_type=code&redirect_uri={uri}")
        assert not isinstance(answer, str) and answer.status_code == 400, (uri, answer)
    print("ok")


main()
