"""Models → results on public test sets, as files, tables and figures."""
