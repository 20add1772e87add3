"""A model over HTTP, as OpenAI's clients expect it. Needs the packages in requirements.txt beside this file."""
