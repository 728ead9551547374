#!/usr/bin/env python3
"""Signs in with headless Chromium through ChromeDriver (W3C WebDriver, standard library only) and looks at a run."""
import argparse
import base64
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request


class Browser:
    def __init__(self, profile: str):
        self.driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        port = None
        for line in self.driver.stdout:
            if found := re.search(r"started successfully on port (\d+)", line):
                port = found.group(1)
                break
        self.base = f"http://127.0.0.1:{port}"
        arguments = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={profile}", "--window-size=1400,900",
        ]  # fmt: skip
        options = {"binary": "/usr/bin/chromium", "args": arguments}
        capabilities = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
        self.session = self.call("POST", "/session", capabilities)["sessionId"]

    def call(self, method: str, path: str, body=None):
        request = urllib.request.Request(
            self.base + path, method=method, data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()) from error

    def do(self, method: str, path: str, body=None):
        return self.call(method, f"/session/{self.session}{path}", body)

    def open(self, url: str):
        self.do("POST", "/url", {"url": url})

    def find(self, selector: str, limit: float = 20) -> str:
        deadline = time.monotonic() + limit
        while True:
            try:
                return next(iter(self.do("POST", "/element", {"using": "css selector", "value": selector}).values()))
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def type(self, selector: str, text: str):
        element = self.find(selector)
        self.do("POST", f"/element/{element}/clear", {})
        self.do("POST", f"/element/{element}/value", {"text": text})

    def click(self, selector: str):
        self.do("POST", f"/element/{self.find(selector)}/click", {})

    def script(self, source: str):
        return self.do("POST", "/execute/sync", {"script": source, "args": []})

    def text(self) -> str:
        return self.script("return document.body.innerText")

    def wait_for_text(self, wanted: str, limit: float = 30) -> str:
        deadline = time.monotonic() + limit
        while wanted not in (text := self.text()):
            if time.monotonic() > deadline:
                sys.exit(f"{wanted!r} did not appear; the page says:\n{text}")
            time.sleep(0.1)
        return text

    def screenshot(self, path: str):
        with open(path, "wb") as out:
            out.write(base64.b64decode(self.do("GET", "/screenshot")))

    def close(self):
        try:
            self.call("DELETE", f"/session/{self.session}")
        finally:
            self.driver.terminate()
            self.driver.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--user", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--screenshots", required=True)
    args = parser.parse_args()
    picture = lambda name: os.path.join(args.screenshots, name + ".png")
    seen = {}
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(profile)
        try:
            browser.open(f"{args.url}/runs/{args.run}")
            browser.find("input[type=password]")
            seen["redirected_to_sign_in"] = "/dex/" in browser.do("GET", "/url")
            browser.screenshot(picture("sign-in"))
            browser.type("input[name=login]", args.user)
            browser.type("input[type=password]", "not the password")
            browser.click("button[type=submit]")
            browser.find("[role=alert]")
            seen["wrong_password_refused"] = "/dex/" in browser.do("GET", "/url")
            browser.type("input[name=login]", args.user)
            browser.type("input[type=password]", os.environ["KFBOX_PASSWORD"])
            browser.click("button[type=submit]")
            browser.wait_for_text("read-dataset")
            browser.wait_for_text("Succeeded")
            seen["run_page"] = browser.text()
            # A dataset comes from somewhere: the first step, its outputs and its log.
            browser.click("svg.graph a[aria-label*=write-dataset]")
            browser.wait_for_text("OUTPUT ARTIFACTS")
            browser.screenshot(picture("run-step"))
            browser.click("[data-tab=log]")
            seen["step"] = browser.wait_for_text("wrote the dataset")
            browser.screenshot(picture("run"))
            browser.open(args.url + "/")
            browser.wait_for_text("kubeflow-user-example-com")
            browser.screenshot(picture("home"))
            browser.open(args.url + "/runs")
            browser.wait_for_text("two-steps")
            browser.screenshot(picture("runs"))
        finally:
            browser.close()
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
