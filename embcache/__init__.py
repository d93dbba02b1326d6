"""A cache for text embeddings with a persistent store: every text is bought once."""

from embcache._version import __version__
from embcache.embedder import AsyncCachedEmbedder, CachedEmbedder
from embcache.errors import (
    AuthenticationError,
    BadReply,
    BudgetExceeded,
    CacheMiss,
    ConfigError,
    EmbcacheError,
    EmbcacheWarning,
    InputRejected,
    InvalidInput,
    ProviderError,
    ProviderUnavailable,
    QuotaExceeded,
    RateLimited,
    StoreBusy,
    StoreError,
)
from embcache.types import CacheStats, EmbedResult, Plan, Space, Usage

__all__ = [
    "AsyncCachedEmbedder",
    "AuthenticationError",
    "BadReply",
    "BudgetExceeded",
    "CacheMiss",
    "CacheStats",
    "CachedEmbedder",
    "ConfigError",
    "EmbcacheError",
    "EmbcacheWarning",
    "EmbedResult",
    "InputRejected",
    "InvalidInput",
    "Plan",
    "ProviderError",
    "ProviderUnavailable",
    "QuotaExceeded",
    "RateLimited",
    "Space",
    "StoreBusy",
    "StoreError",
    "Usage",
    "__version__",
]
