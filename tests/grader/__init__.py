"""The rooms of tests/assignment.py, in the order in which they build on each other:

    problems    the table: what is to be written, its points, its tests
    sources     our files with and without solutions
    language    the first wall: of a student's file only named functions, in a small part of Python
    english     the words of the handout, and the same in
    chinese     Chinese
    handout     the student's repository
    wall        the second wall: namespaces, another user, limits
    examine     tests in a process behind both walls, and what comes back from it
    points      from tests to points; one submission, many, and files for other programs
    variant     other seeds and hidden cases
    proof       what the tests are worth
    attacks     what submissions might try
"""
