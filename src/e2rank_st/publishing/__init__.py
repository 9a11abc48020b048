"""A model folder, adapter or checkpoint → a Hub repository that was verified before a byte of it is uploaded."""

from e2rank_st.publishing.build import Build, Source, build
from e2rank_st.publishing.hub import HubError
from e2rank_st.publishing.upload import Target, check_account, publish
from e2rank_st.publishing.verification import Check, verify

__all__ = ["Build", "Check", "HubError", "Source", "Target", "build", "check_account", "publish", "verify"]
