from tests.training.runs import one_thread, rich_run, small_run

__all__ = ["one_thread", "rich_run", "small_run"]
