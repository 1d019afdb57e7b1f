"""The page docs/settings.md: every setting with its sentence.

python docs/settings.py > docs/settings.md
"""

from src.config.files import describe_keys


def page() -> str:
    rows = [f"| `{key}` | {text.replace('|', chr(92) + '|')} |" for key, text in describe_keys().items()]
    head = [
        "# Every setting",
        "",
        "`python -m src.train --help` prints the same list.",
        "",
        "| key | meaning |",
        "|---|---|",
    ]
    return "\n".join([*head, *rows]) + "\n"


if __name__ == "__main__":
    print(page(), end="")
