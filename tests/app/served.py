"""A served result in tests: where it is, and what is sent to it."""

import time

HOST, TOKEN = "127.0.0.1:8000", "secret"


def post(client, path, **body):
    return client.post(f"api/{path}", json=body)


def ended(client, number):
    ends = time.monotonic() + 60
    while (job := client.get("api/state").json()["jobs"][number - 1])["state"] in {"waiting", "running"}:
        assert time.monotonic() < ends
        time.sleep(0.02)
    return job
