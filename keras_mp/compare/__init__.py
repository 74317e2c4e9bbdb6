"""Float32 and mixed precision, trained side by side: the ``train`` command.

``tasks``   the built-in data sets and models (digits, text)
``custom``  the user's own ``.keras`` model and ``.npz`` data
``worker``  one precision, in a process of its own
``runner``  the processes, an epoch of one and an epoch of the other in turn
``report``  the table, the picture and the JSON file
"""
