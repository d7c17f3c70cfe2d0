"""Brings the browser; where none can be had says so in one line, and leaves it to the tests to be skipped."""

import browser

if __name__ == "__main__":
    try:
        print(f"browser: {browser.bring()}", flush=True)
    except browser.BrowserMissingError as error:
        print(f"no browser: {error}", flush=True)
