"""Somebody signs in to one box through another, as a browser does it.

Environment: PROVIDER and BOX (addresses), BOX_URL (how the box calls itself), KFBOX_EMAIL, KFBOX_PASSWORD.
"""

import os
from urllib.parse import urlsplit

import requests

PROVIDER, BOX, BOX_URL = (os.environ[n] for n in ("PROVIDER", "BOX", "BOX_URL"))
FORM = {"login": os.environ["KFBOX_EMAIL"], "password": os.environ["KFBOX_PASSWORD"]}


def step(session, url, **more):
    return session.get(url, allow_redirects=False, timeout=20, **more)


def main():
    # Two jars: to a browser the two are two sites, but here they differ by their ports alone.
    there, box = requests.Session(), requests.Session()
    page = box.get(f"{BOX}/dex/auth/local/login?rd=%2Foauth2%2Fuserinfo", timeout=20)
    assert "Sign in with The other box" in page.text, page.text
    away = step(box, f"{BOX}/dex/auth/corp?rd=%2Fkfam%2Fv1%2Fbindings")
    assert away.headers["location"].startswith(f"{PROVIDER}/dex/auth?"), away.headers
    login = there.get(away.headers["location"], timeout=20)
    assert "to continue to <strong>box</strong>" in login.text, login.text
    back = there.post(login.url, data=FORM, allow_redirects=False, timeout=20)
    back = step(there, PROVIDER + back.headers["location"]).headers["location"]
    assert back.startswith(f"{BOX_URL}/dex/callback?code="), back
    path = back.removeprefix(BOX_URL)
    assert step(requests.Session(), BOX + path).status_code == 400, "another browser"
    # That attempt used the answer up: begin again.
    assert step(box, BOX + path).status_code == 400
    away = step(box, f"{BOX}/dex/auth/corp?rd=%2Fruns")
    back = step(there, away.headers["location"]).headers["location"].removeprefix(BOX_URL)
    signed = step(box, BOX + back)
    assert (signed.status_code, urlsplit(signed.headers["location"]).path) == (303, "/runs"), signed.text
    who = box.get(f"{BOX}/oauth2/userinfo", timeout=20).json()
    assert who["email"] == FORM["login"] and who["groups"] == ["kfbox-staff", "system:authenticated"], who
    print("ok")


main()
