"""Self-contained HTML pages: one style (page.css), tables, charts, players with log-mels."""
