"""An HTTP server for one model, with OpenAI's shape of requests and answers.

engine.py decodes, in a thread; requests.py reads what clients ask and says what is wrong with it;
answers.py makes texts and JSON of tokens; app.py has the routes, server.py the sockets, page.py
what a browser gets.
"""
