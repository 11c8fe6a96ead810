"""From a config to a report: a ready network, one pass per set, scores, intervals, tables and figures."""
