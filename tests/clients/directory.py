"""Somebody of an LDAP directory comes in as Kubeflow's documentation has it for a script outside of the cluster: the
dashboard's address is asked for, the connector's name goes behind Dex's `/auth`, and the form's fields are posted. Then the
kfp SDK works with the cookie, and with a token of the password grant.

Environment: KFBOX_URL, LDAP_NAME, LDAP_PASSWORD, LDAP_EMAIL, CLIENT_SECRET.
"""

import os
import time
from urllib.parse import urlsplit

import kfp
import requests

URL, NAME, PASSWORD, EMAIL = (os.environ[n] for n in ("KFBOX_URL", "LDAP_NAME", "LDAP_PASSWORD", "LDAP_EMAIL"))
NAMESPACE = "kubeflow-" + EMAIL.replace("@", "-").replace(".", "-")


def cookies_of(connector, name, password):
    session = requests.Session()
    answer = session.get(f"{URL}/pipeline", timeout=20)
    assert answer.history, "nobody was asked to sign in"
    address = urlsplit(answer.url)
    assert address.path.endswith("/dex/auth"), answer.url
    answer = session.get(address._replace(path=f"{address.path}/{connector}").geturl(), timeout=20)
    assert urlsplit(answer.url).path.endswith(f"/auth/{connector}/login"), answer.url
    posted = session.post(answer.url, data={"login": name, "password": password}, timeout=20)
    return posted.status_code, posted.history, "; ".join(f"{c.name}={c.value}" for c in session.cookies)


def settled(cookies):
    """The first sign-in made the namespace; its roles come a moment later."""
    address = f"{URL}/pipeline/apis/v2beta1/experiments?namespace={NAMESPACE}"
    deadline = time.monotonic() + 60
    while requests.get(address, headers={"cookie": cookies}, timeout=20).status_code != 200:
        assert time.monotonic() < deadline, "the namespace is not ready"
        time.sleep(0.1)


def works(client):
    experiment = client.create_experiment(f"of-a-directory-{os.getpid()}", namespace=NAMESPACE)
    assert client.get_experiment(experiment_id=experiment.experiment_id).namespace == NAMESPACE


def main():
    status, history, cookies = cookies_of("ldap", NAME, "wrong")
    assert (status, cookies) == (401, ""), (status, cookies)
    status, history, cookies = cookies_of("ldap", NAME, PASSWORD)
    assert history and cookies, status
    who = requests.get(f"{URL}/oauth2/userinfo", headers={"cookie": cookies}, timeout=20).json()
    assert who["email"] == EMAIL and "staff" in who["groups"], who
    settled(cookies)
    works(kfp.Client(host=f"{URL}/pipeline", cookies=cookies, namespace=NAMESPACE))
    form = {"grant_type": "password", "username": NAME, "password": PASSWORD, "scope": "openid groups"}
    token = requests.post(f"{URL}/dex/token", data=form, auth=("notebook", os.environ["CLIENT_SECRET"]), timeout=20)
    token = token.json()["access_token"]
    works(kfp.Client(host=f"{URL}/pipeline", existing_token=token, namespace=NAMESPACE))
    print("ok")


main()
