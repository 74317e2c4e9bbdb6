"""Float32 and mixed precision, trained side by side: the ``train`` command.

``tasks``   the built-in data sets and models (digits, text)
``custom``  the user's own ``.keras`` model and ``.npz`` data
``worker``  trains in one precision, in a process of its own
``runner``  the processes, each of which trains an epoch in turn
``report``  the table, the sentences and the JSON file
``picture`` the losses and the loss scale, drawn
"""
