"""Where vectors come from: the protocol of a provider, and those that come with embcache."""

from embcache.providers.base import Provider
from embcache.providers.local import LocalProvider
from embcache.providers.openai_compatible import OpenAICompatibleProvider

__all__ = ["LocalProvider", "OpenAICompatibleProvider", "Provider"]
