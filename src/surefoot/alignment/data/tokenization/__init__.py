"""From rows to token ids: one BOS at most, exactly one EOS, and prompt and answer apart."""
