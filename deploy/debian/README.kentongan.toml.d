Files here whose names end with .toml are laid over /etc/kentongan/kentongan.toml, in the order of their names. What a list says here,
such as that of listeners, takes the place of the whole list there.
