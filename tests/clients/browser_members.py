#!/usr/bin/env python3
"""Three people with a browser each: one shares a namespace on the members page, one looks into it, one is refused."""
import argparse
import contextlib
import json
import os
import sys
import tempfile
import time

from browser import Browser


def retry(action, passing: str):
    """Does it again while it fails for a reason that passes."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return action()
        except RuntimeError as error:
            if passing not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


class Person:
    """A browser of somebody's own, signed in."""

    def __init__(self, stack: contextlib.ExitStack, args, email: str):
        self.args = args
        self.browser = Browser(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.callback(self.browser.close)
        self.browser.open(args.url + "/members")
        self.browser.type("input[name=login]", email)
        self.browser.type("input[type=password]", os.environ["KFBOX_PASSWORD"])
        self.browser.click("button[type=submit]")
        self.browser.find("nav a[href='/members'][aria-current]")

    def open(self, path: str) -> str:
        """The page's status, as it says itself."""
        self.browser.open(self.args.url + path)
        self.browser.find("#toast")
        return self.status()

    def status(self) -> str:
        return self.browser.script("return document.querySelector('.problem .code')?.innerText ?? '200'")

    def ask(self, method: str, path: str, form: dict | None = None) -> int:
        """The status of a request from the page, with the browser's cookie."""
        body = "" if form is None else f", body: new URLSearchParams({json.dumps(form)})"
        source = f"return fetch({json.dumps(path)}, {{method: {json.dumps(method)}, redirect: 'manual'{body}}})"
        return self.browser.script(source + ".then((answer) => answer.status)")

    def has(self, selector: str) -> bool:
        return self.browser.script(f"return document.querySelector({json.dumps(selector)}) !== null")

    def confirm(self, selector: str):
        """Presses a button and says yes to the page's question. A page that follows a run may draw the button anew."""
        retry(lambda: self.browser.click(selector), "stale element")
        retry(lambda: self.browser.do("POST", "/alert/accept", {}), "no such alert")

    def stop_run(self):
        self.confirm("form[action$='/terminate'] button")

    def picture(self, name: str):
        self.browser.screenshot(os.path.join(self.args.screenshots, name + ".png"))

    def tries(self) -> dict:
        """What every door to the namespace and its run answers."""
        namespace, run = self.args.namespace, self.args.run
        return {
            "runs_page": self.open(f"/runs?namespace={namespace}"),
            "run_named": self.args.run_name in self.browser.text(),
            "run_page": self.open(f"/runs/{run}"),
            "list": self.ask("GET", f"/apis/v2beta1/runs?namespace={namespace}"),
            "get": self.ask("GET", f"/apis/v2beta1/runs/{run}"),
        }

    def changes(self) -> dict:
        """What must be refused to who has not more than a look."""
        namespace, run = self.args.namespace, self.args.run
        invite = {"namespace": namespace, "person": self.args.stranger, "role": "admin"}
        expel = {"namespace": namespace, "name": self.args.owner, "kind": "user", "role": "admin"}
        return {
            "terminate": self.ask("POST", f"/runs/{run}/terminate"),
            "delete": self.ask("DELETE", f"/apis/v2beta1/runs/{run}"),
            "invite": self.ask("POST", "/members", invite),
            "expel": self.ask("POST", "/members/remove", expel),
        }


def let_in(owner: Person, card: str, email: str):
    owner.browser.type(f"{card} input[name=person]", email)
    owner.browser.click(f"{card} select[name=role] option[value=view]")
    owner.browser.click(f"{card} .grant button[type=submit]")


def wait_without(owner: Person, card: str, row: str):
    """The page that follows: its form stands after the rows, so what is not there by then is gone."""
    gone = f"document.querySelector({json.dumps(row)}) === null"
    there = f"document.querySelector({json.dumps(card + ' .grant')}) !== null"
    deadline = time.monotonic() + 20
    while not owner.browser.script(f"return {there} && {gone}"):
        if time.monotonic() > deadline:
            sys.exit(f"{row} stays; the page says:\n{owner.browser.text()}")
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("url", "owner", "guest", "stranger", "namespace", "run", "run-name", "screenshots"):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args()
    card = f"#ns-{args.namespace}"
    row = f"{card} form[action='/members/remove'] input[name=name][value='{args.guest}']"
    seen = {}
    with contextlib.ExitStack() as stack:
        owner = Person(stack, args, args.owner)
        let_in(owner, card, "nobody-" + args.guest)
        owner.browser.find(f"{card} [role=alert]")
        seen["unknown_person"] = owner.browser.text()
        owner.picture("members-refused")
        guest = Person(stack, args, args.guest)
        seen["before"] = guest.tries()

        let_in(owner, card, args.guest)
        owner.browser.find(row)
        owner.picture("members")
        let_in(owner, card, args.guest)
        owner.browser.find(f"{card} [role=alert]")
        seen["member_already"] = owner.browser.text()

        guest.open("/members")
        seen["guest_manages"] = guest.has(card)
        guest.browser.find(f"section[aria-labelledby=shared-head] a[href='/runs?namespace={args.namespace}']")
        seen["guest_members"] = guest.browser.text()
        guest.picture("shared-with-me")
        guest.browser.click(f"section[aria-labelledby=shared-head] a[href='/runs?namespace={args.namespace}']")
        guest.browser.find("a.main-link[href^='/runs/']")
        guest.picture("shared-runs")
        seen["guest"] = guest.tries()
        seen["guest_changes"] = guest.changes()
        guest.open(f"/runs/{args.run}")
        guest.stop_run()
        guest.browser.find(".problem .code")
        seen["guest_stops"] = guest.status()
        guest.picture("viewer-refused")

        with contextlib.ExitStack() as visit:
            stranger = Person(visit, args, args.stranger)
            seen["stranger_members"] = stranger.browser.text()
            seen["stranger"] = stranger.tries()
            stranger.picture("stranger-refused")
            seen["stranger_changes"] = stranger.changes()

        owner.open("/members")
        owner.confirm(f"{card} button[aria-label^='Remove {args.guest} ']")
        wait_without(owner, card, row)
        seen["after"] = guest.tries()
        guest.open("/members")
        seen["guest_members_after"] = guest.browser.text()

        # What others could not do is there to be done.
        owner.open(f"/runs/{args.run}")
        owner.stop_run()
        owner.browser.find("h1 .s-canceling, h1 .s-canceled")
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
