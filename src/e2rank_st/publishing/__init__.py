"""A model folder, adapter or checkpoint → a Hub repository that was verified before a byte of it is uploaded."""

from e2rank_st.publishing.build import Build, Source, build
from e2rank_st.publishing.hub import HubError
from e2rank_st.publishing.report import publish_model
from e2rank_st.publishing.space import write_space
from e2rank_st.publishing.upload import Target, check_target, plan, publish
from e2rank_st.publishing.verification import Check, verify

__all__ = [
    "Build",
    "Check",
    "HubError",
    "Source",
    "Target",
    "build",
    "check_target",
    "plan",
    "publish",
    "publish_model",
    "verify",
    "write_space",
]
