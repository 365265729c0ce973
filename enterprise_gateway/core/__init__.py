"""Values and rules (layer 0): everything here can be tested with data alone.

May be imported by every other layer and imports none of them. No sockets, no processes and no files here;
``envvars`` is the only module of the whole package that reads ``os.environ``.
"""
