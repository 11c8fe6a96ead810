"""From a config to a report: network made ready, passes, scores, intervals, tables, figures."""
