"""The answers of `altcore explain` and `altcore compare`, rendered for people.

`explanation` and `comparison` turn an answer, which is plain data, into a `Document`: sections of
paragraphs, lists and tables. `markdown` and its neighbours write a document in a format.
"""
