"""The HTTP server: OpenAI's API and Anthropic's on the engine. `settings` and `auth` import without the extra."""
